"""What only the CUDA C++ kernels of linear_act have: tiles by shape, operands read from either side, splits, warpgroups."""

from contextlib import contextmanager

import pytest
import torch

import bigkern
from bigkern.cuda import gemm
from bigkern.cuda import linear_act as launchers
from bigkern.cuda.machine import Recorder, use_machine
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import LOW_PRECISION
from tests.test_linear_act import check, make_inputs

pytestmark = pytest.mark.skipif(cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable()))


class Emulated:
    """A place as tests/support.py has them, that notes its launches."""

    device = "cpu"

    def __init__(self, arch=80):
        self.machine = cuda_emulator.Emulator(arch)
        self.launches = []
        launch = self.machine.launch

        def note(build, kernel, *args):
            self.launches.append((kernel, dict(build.macros)))
            launch(build, kernel, *args)

        self.machine.launch = note

    @contextmanager
    def use(self):
        with bigkern.use_backend("cuda"), use_machine(self.machine):
            yield

    def majors(self):
        return [(m["A_MN_MAJOR"], m["B_MN_MAJOR"]) for _, m in self.launches if "A_MN_MAJOR" in m]


FORWARD, GRAD_INPUT, GRAD_WEIGHT = ("0", "0"), ("0", "1"), ("1", "1")


@pytest.mark.parametrize(
    "shape", [gemm.MATRIX_SHAPES[0], pytest.param(gemm.MATRIX_SHAPES[1], marks=pytest.mark.slow)], ids=str
)
def test_wide_tiles_at_their_borders(shape, monkeypatch):
    """One tile and 8 more in each direction; more steps than stages, the last one not full."""
    monkeypatch.setattr(gemm, "MATRIX_SHAPES", (shape,))
    place = Emulated()
    check(place, *make_inputs(place, shape[0] + 8, shape[1] + 8, 4 * 64 + 24, torch.bfloat16), "silu")
    assert place.majors() == [FORWARD, GRAD_INPUT, GRAD_WEIGHT]
    assert all(macros["BLOCK_N"] == str(shape[1]) for _, macros in place.launches if "BLOCK_N" in macros)


def test_the_small_tile_reads_operands_from_their_other_side():
    for dtype in LOW_PRECISION:
        place = Emulated()
        input, weight, bias, grad_output = make_inputs(place, 72, 80, 136, dtype)
        check(place, input, weight, bias, grad_output, "tanh")
        assert place.majors() == [FORWARD, GRAD_INPUT, GRAD_WEIGHT]
        place.launches.clear()
        check(place, input.t().contiguous().t(), weight.t().contiguous().t(), bias, grad_output, "none")
        assert place.majors() == [("1", "1"), ("0", "0"), ("1", "0")]


def test_wide_tile_of_multiply_adds(monkeypatch):
    monkeypatch.setattr(gemm, "FMA_SHAPES", gemm.FMA_SHAPES[:1])
    place = Emulated()
    check(place, *make_inputs(place, 132, 136, 44, torch.float32), "gelu")
    assert place.launches[0][1]["BLOCK_M"] == "128"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "N", "K"), [(3, 40, 4200), (20, 37, 2100)])
def test_deep_products_with_few_tiles_are_split(M, N, K, dtype):
    place = Emulated()
    place.machine.num_multiprocessors = 8
    check(place, *make_inputs(place, M, N, K, dtype), "gelu_tanh")
    assert "sum_splits_kernel" in [kernel for kernel, _ in place.launches]


def test_misaligned_operands_of_large_products_are_copied(monkeypatch):
    monkeypatch.setattr(gemm, "is_worth_a_copy", lambda M, N, K: True)
    place = Emulated()
    check(place, *make_inputs(place, 21, 67, 37, torch.float16), "relu")
    # The copies keep their side; grad_z is aligned from the start.
    assert place.majors() == [FORWARD, GRAD_INPUT, GRAD_WEIGHT]


@pytest.mark.parametrize("width", [256, pytest.param(128, marks=pytest.mark.slow), 64])
def test_warpgroups_at_the_borders_of_their_tiles(width, monkeypatch):
    """Persistent blocks with several tiles each, more steps than stages, the last one not full."""
    monkeypatch.setattr(gemm, "WARPGROUP_WIDTHS", (width,))
    place = Emulated(90)
    place.machine.num_multiprocessors = 2
    N = width + 72
    check(place, *make_inputs(place, 136, N, 6 * 64 + 40, torch.bfloat16), "gelu")
    kernels = [kernel for kernel, macros in place.launches if "A_MN_MAJOR" in macros]
    assert kernels == ["linear_act_warpgroup_kernel"] * 3
    assert place.majors() == [FORWARD, GRAD_INPUT, GRAD_WEIGHT]


def test_warpgroups_split_and_misaligned():
    place = Emulated(90)
    place.machine.num_multiprocessors = 6
    input, weight, bias, _ = make_inputs(place, 70, 67, 2100, torch.float16)
    with place.use():
        operand = gemm.operand_of(gemm.aligned_copy(weight))
        output, z = torch.empty(70, 67).half(), torch.empty(70, 67).half()
        rows = gemm.operand_of(gemm.aligned_copy(input))
        assert gemm.takes_warpgroups(place.machine, rows, operand)
        launchers.launch_warpgroups(place.machine, rows, operand, bias, "sigmoid", output, z)
    assert [kernel for kernel, _ in place.launches] == ["linear_act_warpgroup_kernel", "sum_splits_kernel"]
    expected = input.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(z.double(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(output.double(), expected.sigmoid(), rtol=1e-3, atol=1e-3)


def test_nan_and_infinity_stay_in_their_row_on_warpgroups():
    place = Emulated(90)
    input, weight, _, _ = make_inputs(place, 72, 64, 64, torch.bfloat16)
    with place.use():
        clean = bigkern.linear_act(input, weight, None, "none")
        input[5, 3], input[70, 60] = float("nan"), float("inf")
        output = bigkern.linear_act(input, weight, None, "none")
    assert output[5].isnan().all()
    assert output[70].isinf().all()
    others = [row for row in range(72) if row not in (5, 70)]
    assert torch.equal(output[others], clean[others])


SHAPES = [
    (1, 4096, 4096),
    (64, 4096, 4096),
    (1024, 1024, 1024),
    (8192, 8192, 8192),
    (1000, 1001, 777),
    (16384, 512, 512),
]


@pytest.mark.parametrize("arch", [80, 86, 90, 100])
def test_launches_fit_the_chip(arch):
    """Shared memory and threads within limits, for every dtype, forward and backward, at large and odd sizes."""
    for dtype in (torch.float32, *LOW_PRECISION):
        for M, N, K in SHAPES:
            new = lambda *shape, dtype=dtype: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
            with use_machine(Recorder(arch)) as machine:
                input, weight, bias, output = new(M, K), new(N, K), new(N), new(M, N)
                launchers.linear_act_forward(input, weight, bias, "gelu", True, output, new(M, N))
                launchers.linear_act_backward(
                    output, input, weight, output, "gelu", True, True, True, new(M, K), new(N, K), new(N)
                )
            assert all(launch.shared_bytes <= machine.shared_memory for launch in machine.launches)
            assert all(launch.block <= 1024 for launch in machine.launches)
            if arch == 90 and dtype != torch.float32 and min(M, N, K) >= 256:
                products = [launch.kernel for launch in machine.launches if "A_MN_MAJOR" in dict(launch.build.macros)]
                assert products == ["linear_act_warpgroup_kernel"] * 3
