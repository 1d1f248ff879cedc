"""quantize's CUDA kernels where they have borders of their own: teams, chunks, columns, addresses of 16 bytes."""

import pytest
import torch

import bigkern
from bigkern.cuda import quantize as launchers
from bigkern.cuda import rows
from bigkern.cuda.machine import SHARED_MEMORY, Recorder, use_machine
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import EMULATOR, Place
from tests.test_quantize import check_quantized

ON_GPU = torch.cuda.is_available()
PLACE = Place("cuda", "cuda") if ON_GPU else EMULATOR
pytestmark = pytest.mark.skipif(not ON_GPU and cuda_emulator.unavailable() is not None, reason="needs a C++ compiler")


def round_trip(input, axis=None, group_size=None, symmetric=False):
    with PLACE.use():
        quantized = bigkern.quantize(input, axis, group_size, symmetric)
        restored = bigkern.dequantize(*quantized, axis=axis, dtype=input.dtype)
    return *quantized, restored


def check(input, axis=None, group_size=None, symmetric=False):
    *quantized, restored = round_trip(input, axis, group_size, symmetric)
    check_quantized(input, *quantized, axis, group_size)
    with bigkern.use_backend("torch"):
        theirs = bigkern.dequantize(*quantized, axis=axis, dtype=input.dtype)
    assert torch.equal(restored, theirs)


def kernels_of(shape, axis, dtype=torch.float32, arch=80):
    """Names of the kernels that quantize launches."""
    recorder = Recorder(arch)
    with use_machine(recorder), bigkern.use_backend("cuda"):
        bigkern.quantize(torch.empty(shape, dtype=dtype, device="meta"), axis)
    return [launch.kernel for launch in recorder.launches]


# Elements of float32; 16 bytes are 4 of them.
BORDERS = [
    ((3, 4), 0),  # one access a row
    ((9, 128), 0),  # a team is as long as a warp
    ((2, 4 * rows.LARGEST_WARP_ROW), 0),
    ((2, 4 * rows.LARGEST_WARP_ROW + 1), 0),  # a team is a block; rows begin at any address
    ((1, 4 * launchers.SMALLEST_SPLIT_ROW), None),
    ((1, 4 * launchers.SMALLEST_SPLIT_ROW + 8), None),  # chunks
    ((2, 3, 1030), 1),  # chunks: parts of a group lie apart
    ((150, 2, 1), 1),  # columns of one lane
    ((19, 132), 1),  # columns, more than one tile
    ((2, 70, 3), 1),
]


@pytest.mark.parametrize(("shape", "axis"), BORDERS, ids=str)
def test_borders_of_the_variants(shape, axis):
    input = torch.randn(shape, device=PLACE.device) * 3 + 1
    for dtype in (torch.float32, torch.bfloat16):
        check(input.to(dtype), axis)


def test_each_variant_is_chosen_where_it_belongs():
    assert kernels_of((4096, 4096), 0) == ["quantize_rows_kernel"]
    assert kernels_of((4096, 4096), 1) == ["column_range_kernel", "group_scale_kernel", "quantize_columns_kernel"]
    chunks = ["group_range_kernel", "group_scale_kernel", "quantize_kernel"]
    assert kernels_of((4096, 4096), None) == chunks
    assert kernels_of((8, 64, 32, 32), 1) == chunks
    widest = (SHARED_MEMORY[80] - rows.STATIC_SHARED_BYTES - rows.ACCESS_BYTES) // 4
    assert kernels_of((128, widest), 0) == ["quantize_rows_kernel"]
    assert kernels_of((128, widest + 1), 0) == chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 70), 0), ((3, 37), 0), ((1, 9000), None), ((2, 3, 70), 1), ((9, 24), 1)]
)
def test_misaligned_input_gives_the_same_bits(shape, axis, dtype):
    input = torch.randn(shape, device=PLACE.device).to(dtype)
    right = round_trip(input, axis)
    shifted = torch.cat([input.new_full((1,), 99), input.flatten()])[1:].view(shape)
    padded = torch.nn.functional.pad(input, (3, 2), value=99)[..., 3:-2]
    spread = torch.stack([input, input], -1)[..., 0]
    for view in (shifted, padded, spread):
        for ours, expected in zip(round_trip(view, axis), right, strict=True):
            assert torch.equal(ours, expected)


def test_a_view_that_begins_past_a_boundary_keeps_wide_accesses():
    input, qinput = torch.empty(3, 40)[:, 3:], torch.empty(3, 40, dtype=torch.int8)[:, 3:]
    assert rows.meet(4, (input, (40,)), (qinput, (40,)))
    assert not rows.meet(4, (input, (40,)), (qinput, (37,)))
    assert not rows.meet(4, (input[:, 1:], (40,)), (qinput, (40,)))


def test_dequantize_reads_any_stride():
    qinput = torch.randint(-128, 128, (6, 5, 44), dtype=torch.int8, device=PLACE.device)
    scale = torch.rand(2, 5, device=PLACE.device)[1]
    zero_point = torch.randint(-20, 20, (5, 2), dtype=torch.int32, device=PLACE.device)[:, 0]
    for view in (qinput, qinput[..., 1:], qinput.transpose(0, 2), qinput[::2], qinput.permute(2, 1, 0).contiguous()):
        with PLACE.use():
            restored = bigkern.dequantize(view, scale, zero_point, axis=1, dtype=torch.float16)
        with bigkern.use_backend("torch"):
            theirs = bigkern.dequantize(view, scale, zero_point, axis=1, dtype=torch.float16)
        assert torch.equal(restored, theirs)
