"""The emulator of csrc/cuda against known answers, instruction by instruction."""

import re

import numpy as np
import pytest
import torch

from bigkern.cuda.machine import build
from tests.cuda_emulator.machine import HERE, Emulator, EmulatorError, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

CASES = HERE / "cases"
ALL_SEEDS = (0, 1, 2, 3)


def launch(source, kernel, grid, block, *args, shared_bytes=0, seeds=ALL_SEEDS, arch=80):
    machine = Emulator(arch, seeds=seeds, folder=CASES)
    machine.launch(build(source), kernel, grid, block, args, shared_bytes)


# ---- known answers ----


def test_shuffles_and_votes():
    results = torch.zeros(10, 32, dtype=torch.int32)
    launch("warp", "shuffles_kernel", 1, 32, results)
    lane = np.arange(32)
    expected = [
        np.full(32, 105),
        100 + lane // 8 * 8 + (lane + 1) % 8,
        100 + np.where(lane < 3, lane, lane - 3),
        100 + np.where(lane % 16 + 3 > 15, lane, lane + 3),
        100 + (lane ^ 9),
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.full(32, 1),
        np.full(32, 0),
        np.full(32, sum(range(100, 132))),
        np.where(lane < 16, 115, -116),
    ]
    assert results.tolist() == np.array(expected).tolist()


def test_block_reductions_and_atomics():
    input = torch.randint(-9, 9, (7, 300)).float()
    sums, counts = torch.empty(7), torch.zeros(1, dtype=torch.int32)
    launch("warp", "row_sums_kernel", 7, 256, input, sums, counts, 300)
    assert torch.equal(sums, input.sum(1))
    assert counts.item() == 7 * 300


def test_cp_async_fills_with_zeros():
    for rows, columns in ((16, 64), (5, 48), (1, 16)):
        input = torch.randint(1, 100, (rows, columns), dtype=torch.int8)
        output = torch.full((16, 64), 111, dtype=torch.int8)
        launch("warp", "copy_padded_kernel", 1, 64, input, output, rows, columns)
        expected = torch.zeros(16, 64, dtype=torch.int8)
        expected[:rows, :columns] = input
        assert torch.equal(output, expected)


def test_barriers():
    output = torch.zeros(32, dtype=torch.int32)
    launch("warp", "named_barriers_kernel", 1, 64, output)
    assert (output == 42).all()
    output = torch.zeros(70, dtype=torch.int32)
    launch("warp", "early_exit_kernel", 1, 128, output)
    assert (output == 70).all()


SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 127.4, 127.5, -128.5, -129.0, 1e9, -1e9, 1e-45, 1e-40, 65504.0, 65519.0]
SPECIAL += [65520.0, 2**-24, 2**-25, 3 * 2**-26, 2**-14 - 2**-26, 3.4e38, -126.5, -127.0, float("inf"), float("-inf")]


def test_conversions():
    tie = 1 + 2**-11  # between two float16
    numbers = torch.tensor([*SPECIAL, tie, tie + 2**-23, float("nan")])
    numbers = torch.cat([numbers, torch.randn(200) * 10.0 ** torch.randint(-8, 6, (200,))])
    count = len(numbers)
    half, bfloat = torch.empty(2, count, dtype=torch.int16)
    tf32, int8s = torch.empty(2, count, dtype=torch.int32)
    exp2s, log2s = torch.empty(2, count)
    launch("numbers", "convert_kernel", 2, 128, numbers, half, bfloat, tf32, int8s, exp2s, log2s, count)
    for got, dtype in ((half, torch.float16), (bfloat, torch.bfloat16)):
        assert torch.equal(got.view(dtype).isnan(), numbers.isnan())
        real = ~numbers.isnan()
        assert torch.equal(got[real], numbers.to(dtype).view(torch.int16)[real])
    real = numbers[numbers.isfinite()]
    rounded = tf32.view(torch.float32)[numbers.isfinite()]
    assert (tf32[numbers.isfinite()] & 0x1FFF == 0).all()
    normal = real.abs() > 1e-37
    assert ((rounded - real).abs() <= real.abs() * 2**-11)[normal].all()
    assert torch.equal(int8s, numbers.nan_to_num(0).round().clamp(-128, 127).int())
    flush = lambda x: torch.where(x.abs() < 2**-126, 0 * x, x)  # noqa: E731
    assert torch.allclose(exp2s, flush(flush(numbers).exp2()), rtol=2**-22, atol=0, equal_nan=True)
    assert torch.allclose(log2s, flush(flush(numbers).log2()), rtol=2**-22, atol=0, equal_nan=True)


def test_widening_is_exact_for_every_number():
    half = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    half_output, bfloat_output = torch.empty(2, 2**16)
    launch("numbers", "widen_kernel", 256, 256, half, half, half_output, bfloat_output, seeds=(0,))
    assert torch.equal(half_output.nan_to_num(7e7), half.view(torch.float16).float().nan_to_num(7e7))
    assert torch.equal(bfloat_output.nan_to_num(7e7), half.view(torch.bfloat16).float().nan_to_num(7e7))


def test_ldmatrix():
    matrices = torch.arange(4 * 8 * 8, dtype=torch.int16)
    registers = torch.zeros(2, 32, 4, dtype=torch.int32)
    launch("numbers", "ldmatrix_kernel", 1, 32, matrices, registers)
    got = registers.view(torch.int16).reshape(2, 32, 4, 2).numpy()
    matrices = matrices.reshape(4, 8, 8).numpy()
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        assert (got[0, lane] == matrices[:, row, column : column + 2]).all()
        assert (got[1, lane] == matrices[:, column : column + 2, row]).all()


def fragments(a, b, d, width):
    """Matrices as registers, in the layout that the PTX ISA states: `width` numbers to a register."""
    lane = np.arange(32)
    group, member = lane // 4, lane % 4
    k = member[:, None] * width + np.arange(width)
    rows = [group, group + 8, group, group + 8]
    fragment_a = np.stack([a[rows[r][:, None], k + r // 2 * 4 * width] for r in range(4)], 1)
    fragment_b = np.stack([b[k + r * 4 * width, group[:, None]] for r in range(2)], 1)
    fragment_d = np.stack([d[rows[r // 2][:, None], member[:, None] * 2 + r % 2] for r in range(4)], 1)
    return fragment_a, fragment_b, fragment_d


@pytest.mark.parametrize(
    ("kernel", "dtype", "width"),
    [
        ("float16", torch.float16, 2),
        ("bfloat16", torch.bfloat16, 2),
        ("tf32", torch.float32, 1),
        ("int8", torch.int8, 4),
    ],
)
def test_mma(kernel, dtype, width):
    depth = 8 * width
    if dtype == torch.int8:
        a, b = (torch.randint(-128, 128, shape, dtype=dtype) for shape in ((16, depth), (depth, 8)))
        d = torch.randint(-1000, 1000, (16, 8), dtype=torch.int32)
    else:
        a, b, d = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.randn(16, 8)
    raw = [x.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()]) for x in (a, b, d)]
    packed = [torch.from_numpy(np.ascontiguousarray(x)) for x in fragments(*(x.numpy() for x in raw), width)]
    registers_a, registers_b, registers_d = (x.flatten() for x in packed)
    registers_d = registers_d.view(d.dtype)
    launch("numbers", f"mma_{kernel}_kernel", 1, 32, registers_a, registers_b, registers_d)
    if dtype == torch.float32:  # the instruction ignores the lowest 13 bits
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    expected = a.double() @ b.double() + d.double()
    expected = fragments(np.zeros((16, depth)), np.zeros((depth, 8)), expected.numpy(), width)[2].flatten()
    got = registers_d.double().numpy()
    assert np.abs(got - expected).max() <= (0 if dtype == torch.int8 else 1e-6)
    # Cut off toward zero, never rounded away from it.
    assert (np.abs(got) <= np.abs(expected)).all()


# ---- Hopper ----


def launch_hopper(kernel, block, *args, shared_bytes, **macros):
    machine = Emulator(90, seeds=ALL_SEEDS, folder=CASES)
    maps = [machine.tensor_map(*arg) if isinstance(arg, tuple) else arg for arg in args]
    machine.launch(build("warpgroup", **macros), kernel, 1, block, maps, shared_bytes)


def box_in_shared_memory(matrix, rows, x, y, swizzle):
    """What a box of 2-byte numbers, `swizzle` (or 64) bytes wide, looks like: zeros outside, pieces of 16 bytes moved."""
    width = (swizzle or 64) // 2
    padded = np.zeros((300, 300), matrix.dtype)
    padded[100 : 100 + matrix.shape[0], 100 : 100 + matrix.shape[1]] = matrix
    box = padded[100 + y : 100 + y + rows, 100 + x : 100 + x + width].copy()
    flat = box.reshape(-1, 8)
    if swizzle:
        piece = np.arange(len(flat))
        flat = flat[piece ^ (piece >> 3 & (swizzle // 16 - 1))]
    return flat.reshape(-1)


def test_tensor_load_swizzles_and_fills_with_zeros():
    matrix = torch.randint(-30000, 30000, (37, 72), dtype=torch.int16)
    for swizzle, x, y in ((0, 0, 0), (0, -5, 30), (32, 8, 3), (64, 50, -2), (128, 0, 0), (128, 40, 33)):
        box = (24, (swizzle or 64) // 2)
        output = torch.zeros(box[0] * box[1], dtype=torch.int16)
        launch_hopper(
            "load_box_2d_kernel",
            32,
            (matrix, box, swizzle),
            output,
            2 * len(output),
            x,
            y,
            shared_bytes=2 * len(output),
        )
        assert (output.numpy() == box_in_shared_memory(matrix.numpy(), box[0], x, y, swizzle)).all()


def test_tensor_copies_in_four_dimensions():
    source = torch.randn(2, 3, 21, 24)[..., :20].transpose(1, 2).contiguous().transpose(1, 2)  # [2, 3, 21, 20]
    target = torch.full((2, 3, 22, 24), float("nan"))
    view = target[:, :, :21, :20]
    box = (1, 1, 8, 20)
    launch_hopper("copy_4d_kernel", 1, (source, box, 0), (view, box, 0), 640, 8, 21, 3, 2, shared_bytes=1280)
    assert torch.equal(view, source)
    assert target[:, :, 21].isnan().all()
    assert target[..., 20:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wgmma_of_k_major_operands(dtype):
    for N, from_registers in ((64, 0), (64, 1), (256, 0)):
        a, b, d = torch.randn(64, 160).to(dtype), torch.randn(N, 160).to(dtype), torch.full((64, N), float("nan"))
        maps = (a, (64, 64), 128), (b, (N, 64), 128)
        launch_hopper(
            f"multiply_{N}_kernel", 128, *maps, d, 160, from_registers, shared_bytes=(64 + N) * 128, SCALAR=dtype
        )
        assert (d - a.double() @ b.double().T).abs().max() <= 3e-5


def test_wgmma_of_mn_major_operands():
    a, b, d = torch.randn(32, 64).bfloat16(), torch.randn(32, 128).bfloat16(), torch.full((64, 128), float("nan"))
    maps = (a, (32, 64), 128), (b, (32, 64), 128)
    launch_hopper("multiply_mn_major_kernel", 128, *maps, d, shared_bytes=3 * 32 * 128, SCALAR=torch.bfloat16)
    assert (d - a.double().T @ b.double()).abs().max() <= 1e-5


def test_wgmma_of_int8():
    a, b = torch.randint(-128, 128, (2, 64, 128), dtype=torch.int8)
    d = torch.zeros(64, 64, dtype=torch.int32)
    launch_hopper(
        "multiply_int8_kernel",
        128,
        (a, (64, 128), 128),
        (b, (64, 128), 128),
        d,
        shared_bytes=2 * 64 * 128,
        SCALAR=torch.bfloat16,
    )
    assert torch.equal(d, a.int() @ b.int().T)


def test_tensor_maps_are_checked():
    machine, matrix = Emulator(90), torch.zeros(300, 128, dtype=torch.int16)
    for tensor, box, swizzle, message in (
        (matrix, (257, 64), 128, "side beyond 1 to 256"),
        (matrix, (8, 128), 128, "rows of 256 bytes in a swizzle of 128"),
        (matrix, (8, 4), 0, "rows of 8 bytes in the box are no multiple of 16"),
        (matrix[:, 1:], (8, 64), 128, "the address is no multiple of 16"),
        (matrix[:, :100].contiguous(), (8, 64), 128, "strides of [200] bytes are no multiples of 16"),
        (matrix.T, (64, 64), 128, "the last stride is"),
        (matrix, (8, 8, 8), 0, "for 2 dimensions"),
    ):
        with pytest.raises(EmulatorError, match=re.escape(message)):
            machine.tensor_map(tensor, box, swizzle)
