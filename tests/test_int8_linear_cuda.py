"""What only the CUDA C++ kernels of int8_linear have: tiles by shape, splits, warpgroups, rows by warp and by block."""

import pytest
import torch

import bigkern
from bigkern.cuda import gemm
from tests.cuda_emulator import machine as cuda_emulator
from tests.test_int8_linear import check_forward, problem
from tests.test_linear_act_cuda import Emulated

pytestmark = pytest.mark.skipif(cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable()))


def run_and_check(place, M, N, K, dtype, activation):
    """The kernels that ran; the result is within a few ulp of the oracle."""
    arguments = problem(M, N, K, dtype)
    place.launches.clear()
    with place.use():
        output = bigkern.int8_linear(*arguments, activation)
    check_forward(output, *arguments, activation)
    return [kernel for kernel, _ in place.launches]


def test_wide_tile_at_its_borders(monkeypatch):
    monkeypatch.setattr(gemm, "MATRIX_SHAPES", gemm.MATRIX_SHAPES[:1])
    kernels = run_and_check(Emulated(), 136, 264, 4 * 128 + 48, torch.bfloat16, "silu")
    assert kernels == ["quantize_short_rows_kernel", "int8_linear_kernel"]


@pytest.mark.parametrize(("M", "N", "K"), [(3, 40, 8400), (20, 37, 4200)])
def test_deep_products_with_few_tiles_are_split(M, N, K):
    place = Emulated()
    place.machine.num_multiprocessors = 8
    kernels = run_and_check(place, M, N, K, torch.float16, "tanh")
    assert kernels == ["quantize_long_rows_kernel", "int8_linear_kernel", "sum_splits_kernel"]


@pytest.mark.parametrize("width", [256, pytest.param(128, marks=pytest.mark.slow), 64])
def test_warpgroups_at_the_borders_of_their_tiles(width, monkeypatch):
    monkeypatch.setattr(gemm, "WARPGROUP_WIDTHS", (width,))
    place = Emulated(90)
    place.machine.num_multiprocessors = 2
    kernels = run_and_check(place, 136, width + 72, 6 * 128 + 80, torch.bfloat16, "gelu")
    assert kernels == ["quantize_short_rows_kernel", "int8_linear_warpgroup_kernel"]


def test_warpgroups_split():
    place = Emulated(90)
    place.machine.num_multiprocessors = 6
    kernels = run_and_check(place, 70, 67, 4112, torch.float32, "none")
    assert kernels == ["quantize_long_rows_kernel", "int8_linear_warpgroup_kernel", "sum_splits_kernel"]


def test_misaligned_weights_of_large_products_are_copied(monkeypatch):
    monkeypatch.setattr(gemm, "is_worth_a_copy", lambda M, N, K: True)
    place = Emulated(90)
    assert "int8_linear_warpgroup_kernel" in run_and_check(place, 70, 67, 131, torch.float32, "relu")
