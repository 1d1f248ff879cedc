"""cross_entropy's CUDA kernels where they have borders of their own: teams, pieces, kept rows, addresses of 16 bytes."""

import pytest
import torch

import bigkern
from bigkern.cuda import cross_entropy as launchers
from bigkern.cuda.machine import SHARED_MEMORY, Recorder, use_machine
from bigkern.cuda.rows import LARGEST_WARP_ROW, STATIC_SHARED_BYTES
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import EMULATOR, Place
from tests.test_cross_entropy import check, make, run

ON_GPU = torch.cuda.is_available()
PLACE = Place("cuda", "cuda") if ON_GPU else EMULATOR
pytestmark = pytest.mark.skipif(not ON_GPU and cuda_emulator.unavailable() is not None, reason="needs a C++ compiler")
emulated = pytest.mark.skipif(ON_GPU, reason="of a machine of another size")


def check_all(shape, dtype=torch.float32, **options):
    """Index targets, then probabilities with weights and smoothing."""
    logits, target, _ = make(PLACE, shape, dtype)
    target.view(-1)[0] = shape[1] - 1  # the last class of a row
    check(PLACE, logits, target, **options)
    check(PLACE, *make(PLACE, shape, dtype, probabilities=True, weighted=True), label_smoothing=0.1, **options)


# Elements of float32 unless bfloat16; 16 bytes are 4 or 8 of them.
BORDERS = [
    ((2, 4), torch.float32),  # one access a row
    ((70, 8), torch.bfloat16),
    ((2, 4 * LARGEST_WARP_ROW), torch.float32),
    ((2, 4 * LARGEST_WARP_ROW + 1), torch.float32),  # a team is a block; rows begin at any address
    ((2, 4 * 2 * launchers.SMALLEST_CHUNK + 3), torch.float32),  # two blocks per row, forward
    ((1, 4 * launchers.BACKWARD_PIECE + 1), torch.float32),  # and backward, with the sums of both
    ((3, 8 * launchers.BACKWARD_PIECE + 1), torch.bfloat16),  # pieces from lse
    ((2, 3, 264), torch.bfloat16),  # positions: more than one tile
    ((1, 2050, 5), torch.float32),  # positions: more than one chunk
    ((2, 70, 4), torch.float32),
]


@pytest.mark.parametrize(("shape", "dtype"), BORDERS, ids=str)
def test_borders_of_the_variants(shape, dtype):
    check_all(shape, dtype)


@emulated
@pytest.mark.parametrize("extra", [0, 1, 300])
def test_rows_that_shared_memory_holds_in_part(monkeypatch, extra):
    monkeypatch.setitem(SHARED_MEMORY, 80, STATIC_SHARED_BYTES + 4096 + 32)
    check_all((2, 1024 + extra))


@pytest.mark.parametrize("shape", [(2, 2100), (3, 30), (2, 40, 9), (1, 30, 16)])
def test_extreme_logits_in_16_bits_keep_their_gradient(shape):
    """|lse| is so large that its own rounding would show."""
    for dtype, offset in ((torch.float16, 2.0**13), (torch.bfloat16, 2.0**15)):
        logits, target, _ = make(PLACE, shape, torch.float32)
        logits = (logits.round() * offset / 256 + offset).to(dtype)
        logits.view(-1)[::7] = 0
        check(PLACE, logits, target, reduction="none")
        check(PLACE, logits, target, reduction="none", label_smoothing=0.1)


@emulated
def test_pieces_of_extreme_rows_take_their_sums_from_the_whole(monkeypatch):
    monkeypatch.setattr(launchers, "BACKWARD_PIECE", 40)
    logits = (torch.randn(2, 2999).round() * 512 + 2.0**15).to(torch.bfloat16)
    check(PLACE, logits, torch.tensor([2998, 0]), reduction="none")


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(3, 70), (2, 1101), (2, 24, 8)])
def test_misaligned_logits_give_the_same_bits_elsewhere(shape, probabilities):
    logits, target, _ = make(PLACE, shape, torch.float16, probabilities)
    right = run_all(logits, target)
    aside = torch.cat([logits.new_full((1,), 99), logits.flatten()])[1:].view(shape)
    apart = torch.nn.functional.pad(logits, (3, 2), value=99)[..., 3:-2]
    for view in (aside, apart):
        for ours, expected in zip(run_all(view, target), right, strict=True):
            # Sums over other pieces of the row differ in their last bits.
            torch.testing.assert_close(ours, expected, rtol=2e-3, atol=1e-6)


def run_all(logits, target):
    with PLACE.use():
        loss, _, *grads = run(bigkern.cross_entropy, logits, target, None, reduction="none", label_smoothing=0.1)
    return loss, *(grad for grad in grads if grad is not None)


def launches_of(shape, dtype, arch=90, probabilities=False):
    recorder = Recorder(arch)
    logits = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    target = torch.empty_like(logits) if probabilities else torch.empty(shape[:1], dtype=torch.int64, device="meta")
    with use_machine(recorder), bigkern.use_backend("cuda"):
        bigkern.cross_entropy(logits, target).backward()
    return recorder.launches


@pytest.mark.parametrize("arch", sorted(SHARED_MEMORY))
def test_every_width_fits_into_shared_memory_and_one_pass(arch):
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (1, 10, 1000, 4096, 32000, 50257, 128256, 262144):
            for rows in (1, 40, 4096):
                launches = launches_of((rows, classes), dtype, arch)
                assert all(launch.shared_bytes <= SHARED_MEMORY[arch] - STATIC_SHARED_BYTES for launch in launches)
                backward = [launch.kernel for launch in launches if "backward" in launch.build.source]
                assert backward == ["cross_entropy_backward_rows_kernel"]
                sums = [launch.kernel for launch in launches].count("cross_entropy_rows_kernel")
                assert sums == 1 or (dtype == torch.float32 and rows <= 74)


def test_wide_rows_occupy_every_multiprocessor():
    machine = Recorder(90)
    for rows in (1, 2, 7, 64, 300, 1000):
        layout = launchers.rows_of(torch.empty(rows, 131072, 1, device="meta"), torch.empty(rows, 1, dtype=torch.int64))
        plan = launchers.row_plan_for(layout, machine)
        assert plan.grid >= min(4 * machine.num_multiprocessors, rows * 32)
