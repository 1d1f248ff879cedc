"""The norms' CUDA kernels where they have borders of their own: teams, kept and long rows, addresses of 16 bytes."""

import pytest
import torch

import bigkern
from bigkern.cuda import norm as launchers
from bigkern.cuda.machine import SHARED_MEMORY, Recorder, use_machine
from bigkern.cuda.rows import LARGEST_WARP_ROW, STATIC_SHARED_BYTES
from bigkern.ops.add_layer_norm import add_layer_norm_forward
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import EMULATOR, Place
from tests.test_add_layer_norm import check as check_add_layer_norm
from tests.test_add_layer_norm import draw, state_of
from tests.test_layer_norm import TestLayerNorm as LayerNorm
from tests.test_rms_norm import TestRmsNorm as RmsNorm

ON_GPU = torch.cuda.is_available()
PLACE = Place("cuda", "cuda") if ON_GPU else EMULATOR
pytestmark = pytest.mark.skipif(not ON_GPU and cuda_emulator.unavailable() is not None, reason="needs a C++ compiler")
emulated = pytest.mark.skipif(ON_GPU, reason="of a machine of another size")
RNG_STATE = (77 + (5 << 32), 12)


def check(op, rows, columns, dtype):
    if op == "add_layer_norm":
        check_add_layer_norm(PLACE, draw(PLACE, rows, columns, dtype), RNG_STATE, 0.3)
    else:
        norm = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}[op]()
        norm.check(PLACE, norm.draw(PLACE, (rows, columns), dtype))


# Elements of float32 unless bfloat16; 16 bytes are 4 or 8 of them.
BORDERS = [
    ("layer_norm", 70, 8, torch.bfloat16),  # teams of a lane; several groups of rows a block
    ("rms_norm", 5, 4 * launchers.LARGEST_WARP_ROW, torch.float32),
    ("rms_norm", 5, 4 * launchers.LARGEST_WARP_ROW + 4, torch.float32),  # backward, a block a row
    ("layer_norm", 3, 4 * LARGEST_WARP_ROW, torch.float32),
    ("layer_norm", 3, 4 * LARGEST_WARP_ROW + 1, torch.float32),  # and forward, at any address
    ("add_layer_norm", 3, 8 * LARGEST_WARP_ROW + 8, torch.bfloat16),
    ("add_layer_norm", 3, 8 * launchers.LARGEST_WARP_ROW + 3, torch.bfloat16),
]


@pytest.mark.parametrize(("op", "rows", "columns", "dtype"), BORDERS, ids=str)
def test_borders_of_the_variants(op, rows, columns, dtype):
    check(op, rows, columns, dtype)


@emulated
@pytest.mark.parametrize("columns", [256, 260, 301, 1028])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "add_layer_norm"])
def test_rows_that_shared_memory_does_not_hold(monkeypatch, op, columns):
    """Backward from 259 columns on, forward from 1025."""
    monkeypatch.setitem(SHARED_MEMORY, 80, STATIC_SHARED_BYTES + 4096 + 32)
    check(op, 37, columns, torch.float32)


@emulated
def test_the_sum_of_a_long_row_needs_no_place_of_its_own(monkeypatch):
    monkeypatch.setitem(SHARED_MEMORY, 80, STATIC_SHARED_BYTES + 4096 + 32)
    arguments = (*draw(PLACE, 3, 1030), state_of(PLACE, RNG_STATE), 1e-5, 0.3)
    with PLACE.use():
        output, total, *_ = add_layer_norm_forward(*arguments, False)
        right, *_ = add_layer_norm_forward(*arguments, True)
    assert total.numel() == 0
    assert torch.equal(output, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_misaligned_tensors(dtype):
    for op in (LayerNorm(), RmsNorm()):
        input, *parameters = op.draw(PLACE, (5, 40), dtype)
        parameters = [torch.cat([p[:1], p])[1:] for p in parameters]
        grad_output = torch.randn(5, 43, device=PLACE.device).to(dtype)[:, 2:-1]
        shifted = torch.cat([input.new_full((1,), 99), input.flatten()])[1:].view(5, 40)
        for view in (input, shifted, torch.nn.functional.pad(input, (3, 2), value=99)[:, 3:-2]):
            op.check(PLACE, [view, *parameters], grad_output=grad_output)


def test_a_weight_of_any_dtype():
    for dtype, weight_dtype in (
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ):
        input = torch.randn(6, 24, device=PLACE.device).to(dtype)
        weight = (torch.randn(24, device=PLACE.device) + 1).to(weight_dtype)
        grad_output = torch.randn(6, 24, device=PLACE.device).to(dtype)
        RmsNorm().check(PLACE, [input, weight], grad_output=grad_output)


# ---- which kernels -----------------------------------------------------------------------------------------------------


def kernels_of(rows, columns, dtype=torch.bfloat16, arch=90):
    """Names of the kernels that layer_norm's forward and backward launch."""
    recorder = Recorder(arch)
    with use_machine(recorder), bigkern.use_backend("cuda"):
        tensors = [
            torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for shape in ((rows, columns), columns)
        ]
        bigkern.layer_norm(tensors[0], (columns,), tensors[1], tensors[1]).sum().backward()
    return [launch.kernel for launch in recorder.launches]


def test_each_variant_is_chosen_where_it_belongs():
    in_rows = ["norm_forward_kernel", "norm_backward_rows_kernel", "norm_reduce_kernel"]
    twice = ["norm_forward_kernel", "norm_backward_sums_kernel", "norm_backward_strips_kernel", "norm_reduce_kernel"]
    widest = (SHARED_MEMORY[90] - STATIC_SHARED_BYTES) // 12 // 8 * 8
    for columns in (64, 1000, 4096, 16384, widest):
        assert kernels_of(4096, columns) == in_rows
    assert kernels_of(4096, widest + 8) == twice


@pytest.mark.parametrize("arch", [80, 86, 90])
def test_every_plan_fits_into_shared_memory(arch):
    machine = Recorder(arch)
    for columns in (1, 3, 31, 64, 500, 513, 1024, 2048, 4096, 9000, 11000, 13000, 20000):
        for rows in (1, 2, 1000, 10**6):
            for element_size in (2, 4):
                for wide in (False, True):
                    plan = launchers.rows_plan_for(rows, columns, element_size, wide, 2, machine)
                    if plan is None:
                        assert columns * (2 * element_size + 8) + 64 > machine.shared_memory - STATIC_SHARED_BYTES
                        continue
                    assert plan.shared_bytes + STATIC_SHARED_BYTES <= machine.shared_memory
                    assert plan.team.block % 32 == 0
                    assert plan.team.size <= 32 or plan.team.size == plan.team.block
                    assert 1 <= plan.blocks <= -(-rows // plan.team.rows)
