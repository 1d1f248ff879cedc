"""Kernels with one fault each, which the emulator must report."""

import re

import pytest
import torch

from bigkern.cuda.machine import build
from tests.cuda_emulator.machine import Emulator, EmulatorError, unavailable
from tests.test_cuda_emulator import ALL_SEEDS, CASES, launch

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def report(*args, **kwargs):
    """What the emulator says about a launch that must fail."""
    with pytest.raises(EmulatorError) as caught:
        launch(*args, **kwargs)
    return str(caught.value)


# ---- faults ----


def test_out_of_bounds_accesses():
    x = torch.zeros(8)
    for kernel, args, shared_bytes in (
        ("store_beyond_global_kernel", (x, 8), 0),
        ("store_beyond_global_kernel", (x, 300), 0),
        ("load_before_global_kernel", (torch.zeros(9)[:8], x), 0),
        ("store_beyond_static_kernel", (x, 12), 0),
        ("store_beyond_dynamic_kernel", (x, 5), 20),
    ):
        text = report("faults", kernel, 1, 8, *args, shared_bytes=shared_bytes)
        assert "AddressSanitizer" in text or "with insufficient space" in text
        assert f"in {kernel}" in text
    launch("faults", "store_beyond_static_kernel", 1, 8, x, 11)
    launch("faults", "store_beyond_dynamic_kernel", 1, 8, x, 4, shared_bytes=20)


def test_misaligned_accesses():
    x, y = torch.zeros(8), torch.zeros(1)
    assert "misaligned address" in report("faults", "misaligned_vector_kernel", 1, 1, x, y)
    assert "no multiple of 16" in report("faults", "misaligned_copy_kernel", 1, 1, x)
    # What the launcher saw is what the kernel sees.
    assert "no multiple of 16" in report(
        "warp", "copy_padded_kernel", 1, 64, torch.zeros(65, dtype=torch.int8)[1:], x, 1, 64
    )


def test_a_missing_barrier_changes_the_result():
    assert "depends on the order" in report("faults", "missing_barrier_kernel", 1, 64, torch.zeros(64))


def test_a_missing_wait_changes_the_result():
    assert "depends on the order" in report("faults", "missing_wait_kernel", 1, 32, torch.zeros(128), torch.zeros(128))


def test_deadlock_says_who_waits_where():
    text = report("faults", "deadlock_kernel", 1, 96, torch.zeros(1))
    assert "deadlock" in text
    assert re.search(r"at named_barrier_sync, faults.cu:\d+: threads 0-31\n", text)
    assert re.search(r"at __syncthreads, faults.cu:\d+: threads 32-95\n", text)


def test_divergence():
    x = torch.zeros(32)
    text = report("faults", "divergent_shuffle_kernel", 1, 32, x)
    assert "divergence" in text
    assert "at __shfl_xor_sync" in text
    assert "divergence" in report("faults", "divergent_barrier_kernel", 1, 32, x)
    text = report("faults", "shuffle_from_exited_kernel", 1, 32, x)
    assert "reads lane 25, which does not take part" in text


def test_shared_memory_starts_as_nan_in_every_block():
    output = torch.zeros(2)
    launch("faults", "uninitialised_kernel", 3, 1, output, shared_bytes=16)
    assert output.isnan().all()


def test_wrong_launches():
    x = torch.zeros(1)
    assert "bound to 64 threads" in report("faults", "bounded_kernel", 1, 65, x)
    assert "argument 1 is int64, got float" in report("faults", "store_beyond_global_kernel", 1, 1, x, 1.0)
    assert "takes 2 arguments, got 1" in report("faults", "store_beyond_global_kernel", 1, 1, x)
    assert "no kernel absent" in report("faults", "absent", 1, 1, x)
    assert "there are" in report("faults", "bounded_kernel", 1, 1, x, shared_bytes=200_000)


def test_undefined_behaviour():
    text = report("faults", "integer_overflow_kernel", 1, 1, torch.ones(1, dtype=torch.int32))
    assert "signed integer overflow" in text


# ---- races ----


def race_report(source, kernel, grid, block, *args):
    """ "" where the detection of races finds nothing, in any order."""
    machine = Emulator(kind="race", seeds=(0, 1, 2), folder=CASES)
    try:
        machine.launch(build(source), kernel, grid, block, args)
    except EmulatorError as error:
        return str(error)
    return ""


def test_races_are_found_in_any_order():
    x, output, ticket = torch.randn(4, 256), torch.zeros(256), torch.zeros(1, dtype=torch.int32)
    for kernel, grid, block, args, race in (
        ("safe_transpose_kernel", 1, 64, (output,), False),
        ("early_overwrite_kernel", 1, 64, (output,), True),
        ("missing_syncwarp_kernel", 1, 32, (output,), True),
        ("wrong_barrier_kernel", 1, 128, (output,), True),
        ("safe_bytes_kernel", 1, 64, (output.char(),), False),
        ("overlapping_blocks_kernel", 2, 32, (output,), True),
        ("safe_ticket_kernel", 5, 32, (x, ticket.clone(), output), False),
        ("missing_ticket_kernel", 5, 32, (x, ticket.clone(), output), True),
        ("pipeline_kernel", 1, 64, (x, output, 4, 1), False),
        ("pipeline_kernel", 1, 64, (x, output, 4, 0), True),
    ):
        text = race_report("races", kernel, grid, block, *args)
        assert ("emulator: race: " in text) == race, f"{kernel} {args[2:]}: {text}"


def test_a_race_is_reported_with_both_places():
    text = race_report("faults", "missing_barrier_kernel", 1, 64, torch.zeros(64))
    assert "of static shared memory" in text
    lines = (CASES / "faults.cu").read_text().splitlines()
    places = [lines[int(line) - 1] for line in re.findall(r"faults\.cu:(\d+)", text)]
    assert places == ["  numbers[threadIdx.x] = threadIdx.x;", "  output[threadIdx.x] = numbers[63 - threadIdx.x];"]


# ---- faults with Hopper's instructions ----


def hopper_report(kernel, block, *args, kind="address", shared_bytes):
    machine = Emulator(90, seeds=ALL_SEEDS, kind=kind, folder=CASES)
    maps = [machine.tensor_map(*arg) if isinstance(arg, tuple) else arg for arg in args]
    try:
        machine.launch(build("warpgroup_faults"), kernel, 1, block, maps, shared_bytes)
    except EmulatorError as error:
        return str(error)
    return ""


def test_faults_of_tensor_loads():
    source = torch.randint(-100, 100, (64, 128), dtype=torch.int8)
    messages = [
        "",
        "no mbarrier_init_fence",
        "deadlock|more than 1 arrivals|still expects -",
        "deadlock",
        "ends before the copy",
    ]
    messages += ["no multiple of 1024", "more than 1 arrivals", "not initialised"]
    for fault, message in enumerate(messages):
        output = torch.zeros(64 * 128, dtype=torch.int8)
        text = hopper_report("load_kernel", 64, (source, (64, 128), 128), output, fault, shared_bytes=64 * 128 + 1024)
        assert re.search(message, text) if message else text == "", f"fault {fault}: {text}"


@pytest.mark.parametrize("kind", ["address", "race"])
def test_a_stage_is_overwritten_too_early(kind):
    source, output = torch.randn(5 * 64, 32), torch.zeros(128)
    arguments = 256, (source, (64, 32), 128), output, 5
    assert hopper_report("ring_kernel", *arguments, 1, kind=kind, shared_bytes=2 * 64 * 128) == ""
    assert abs(output.double().sum() - source.double().sum()) < 1e-3
    text = hopper_report("ring_kernel", *arguments, 0, kind=kind, shared_bytes=2 * 64 * 128)
    assert re.search("race" if kind == "race" else "depends on the order|deadlock", text)


def test_faults_of_warpgroup_products():
    source = torch.randn(64, 64).bfloat16()
    expected = source.double() @ source.double().T
    # By fault: what the run under AddressSanitizer says, and the one that looks for races.
    messages = [
        ("", ""),
        ("", "no async_proxy_fence"),
        ("no wgmma_fence", "no wgmma_fence"),
        ("depends on the order", ""),
        ("128 bytes into its 1024-byte", "128 bytes into its 1024-byte"),
        ("depends on the order", "race"),
        ("warp 0 did less", "warp 0 did less"),
        ("depends on the order", "race"),
    ]
    for fault, of_kind in enumerate(messages):
        for kind, message in zip(("address", "race"), of_kind, strict=True):
            if fault == 3 and kind == "race":  # registers belong to one thread
                continue
            d = torch.zeros(64, 64)
            text = hopper_report("square_kernel", 128, source, d, fault, kind=kind, shared_bytes=64 * 128 + 1024)
            assert message in text if message else text == "", f"fault {fault}, {kind}: {text}"
            if not text:
                assert (d - expected).abs().max() < 1e-4


def test_faults_of_tensor_stores():
    target = torch.zeros(64, 128, dtype=torch.int8)
    expected = (torch.arange(64 * 128) % 100).char().reshape(64, 128)
    for fence, wait, message in ((1, 1, ""), (0, 1, "no async_proxy_fence"), (1, 0, "may still read shared memory")):
        arguments = 64, (target, (64, 128), 0), fence, wait
        text = hopper_report("store_kernel", *arguments, kind="race", shared_bytes=64 * 128)
        assert message in text if message else text == "", text
        if not message:
            assert torch.equal(target, expected)
