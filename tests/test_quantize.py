import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern.reference import quantize as reference
from tests.support import assert_within_policy, to_oracle

SHAPES = [((5, 7), None), ((5, 7), 0), ((5, 7), 1), ((3, 130, 4), 1), ((1,), None), ((1, 1), 0), ((2, 33), -1)]


def check_quantized(input, qinput, scale, zero_point, axis=None, group_size=None):
    """scale and zero_point are the oracle's; each q is the nearest one to x / scale."""
    symmetric = zero_point is None
    if group_size:
        grouped = input.reshape(1, -1, group_size)
    elif axis is None:
        grouped = input.reshape(1, 1, -1)
    else:
        axis %= input.ndim
        grouped = input.reshape(input.shape[:axis].numel(), input.shape[axis], -1)
    _, oracle_scale, oracle_zero_point = reference.quantize_forward(to_oracle(grouped), symmetric)
    assert_within_policy(scale.reshape(-1), oracle_scale, None, what="scale")
    zero = np.zeros(len(oracle_scale))
    if not symmetric:
        zero = to_oracle(zero_point).reshape(-1).astype(np.float64)
        # Where -128 - lo/scale is a tie up to rounding, either neighbour is right.
        assert np.abs(zero - oracle_zero_point).max(initial=0) <= 1
    quotient = to_oracle(grouped) / to_oracle(scale).reshape(-1)[:, None]
    q = to_oracle(qinput).reshape(grouped.shape).astype(np.float64) - zero[:, None]
    lowest = -127 if symmetric else -128
    nearest = np.clip(quotient, lowest - zero[:, None], 127 - zero[:, None])
    assert np.abs(q - nearest).max(initial=0) <= 0.5 + 1e-4


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_quantize_matches_oracle(place, shape, axis, symmetric):
    for dtype in place.dtypes:
        input = (torch.randn(shape, device=place.device) * 3 + 1).to(dtype)
        before = input.clone()
        with place.use():
            qinput, scale, zero_point = bigkern.quantize(input, axis=axis, symmetric=symmetric)
        assert torch.equal(input, before)
        check_quantized(input, qinput, scale, zero_point, axis)


def test_rounds_half_to_even(place):
    # amax 127 makes the scale exactly 1, so that these are ties.
    input = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], device=place.device)
    with place.use():
        qinput, scale, _ = bigkern.quantize(input)
    assert scale.item() == 1
    assert qinput.tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


@given(
    rows=st.integers(1, 9), groups=st.integers(1, 5), group_size=st.integers(1, 70), symmetric=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_groups_of_the_last_dimension(place, rows, groups, group_size, symmetric, seed):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(rows, groups * group_size, generator=generator).to(place.device)
    with place.use():
        qinput, scale, zero_point = bigkern.quantize(input, group_size=group_size, symmetric=symmetric)
        restored = bigkern.dequantize(qinput, scale, zero_point)
    assert scale.shape == (rows, groups)
    check_quantized(input, qinput, scale, zero_point, group_size=group_size)
    assert ((restored - input).abs() <= 0.501 * scale.repeat_interleave(group_size, 1) + 1e-6).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_group_is_loud_and_leaves_others_alone(place, bad, symmetric):
    for position in (0, 40, 63):  # in a full vector and in the tail
        input = torch.randn(3, 70, device=place.device)
        clean = input.clone()
        input[1, position] = bad
        with place.use():
            qinput, scale, zero_point = bigkern.quantize(input, axis=0, symmetric=symmetric)
            restored = bigkern.dequantize(qinput, scale, zero_point, axis=0)
            expected = bigkern.quantize(clean, axis=0, symmetric=symmetric)[0]
        assert scale[1].isnan()
        assert (qinput[1] == 0).all()
        assert restored[1].isnan().all()
        assert torch.equal(qinput[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_give_scale_one(place, symmetric):
    with place.use():
        qinput, scale, zero_point = bigkern.quantize(torch.zeros(2, 5, device=place.device), 0, symmetric=symmetric)
    assert scale.tolist() == [1, 1]
    assert (qinput == 0).all()
    assert symmetric or zero_point.tolist() == [0, 0]


def test_smallest_and_largest_numbers_do_not_overflow(place):
    input = torch.tensor([[3e38, -3e38, 1.0], [1e-45, -1e-45, 0.0]], device=place.device)
    for symmetric in (True, False):
        with place.use():
            qinput, scale, zero_point = bigkern.quantize(input, 0, symmetric=symmetric)
            restored = bigkern.dequantize(qinput, scale, zero_point, axis=0)
        assert scale.isfinite().all()
        assert (scale > 0).all()
        assert ((restored - input).abs() <= scale[:, None] * 0.51).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_dequantize_matches_oracle(place, axis, dtype):
    qinput = torch.randint(-128, 128, (6, 37), dtype=torch.int8, device=place.device)
    size = () if axis is None else (qinput.shape[axis],)
    scale = torch.rand(size, device=place.device) + 0.1
    zero_point = torch.randint(-20, 20, size, dtype=torch.int32, device=place.device)
    with place.use():
        restored = bigkern.dequantize(qinput, scale, zero_point, axis=axis, dtype=dtype)
    expand = {None: (), 0: (slice(None), None), 1: (None, slice(None))}[axis]
    oracle = (to_oracle(qinput).astype(float) - to_oracle(zero_point)[expand]) * to_oracle(scale)[expand]
    assert restored.dtype == dtype
    assert_within_policy(restored, oracle, None)


def test_non_contiguous_input(place):
    base = torch.randn(40, 66, device=place.device)
    for view in (base.t(), base[::2, 1::3], base[:, :1].expand(40, 9), base.flip(0)):
        with place.use():
            got = bigkern.quantize(view, axis=0)
            expected = bigkern.quantize(view.contiguous(), axis=0)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("shape", "axis", "group_size"), [((0,), None, None), ((0, 4), 0, None), ((4, 0), 0, None), ((0, 8), None, 4)]
)
def test_empty_tensors(place, shape, axis, group_size):
    with place.use():
        qinput, scale, _ = bigkern.quantize(torch.empty(shape, device=place.device), axis, group_size)
    assert qinput.shape == shape
    assert (scale == 1).all()


def test_dequantize_gradient_of_scale(place):
    qinput = torch.randint(-128, 128, (4, 6), dtype=torch.int8)
    scale = torch.rand(4, dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor([0, 3, -2, 1])
    if torch.float64 in place.dtypes:
        with place.use():
            call = lambda s: bigkern.dequantize(qinput, s, zero_point, axis=0, dtype=torch.float64)  # noqa: E731
            assert torch.autograd.gradcheck(call, (scale,))
            assert torch.autograd.gradgradcheck(call, (scale,))


def test_registration_is_complete():
    input = torch.randn(2, 3, 8)
    for symmetric in (True, False):
        opcheck(torch.ops.bigkern.quantize_forward.default, (input, symmetric))
    qinput = torch.randint(-128, 128, (2, 3, 8), dtype=torch.int8)
    scale = torch.rand(3, requires_grad=True)
    opcheck(torch.ops.bigkern.dequantize_forward.default, (qinput, scale, None, torch.float16))


def test_compiles_with_dynamic_shapes():
    def round_trip(x):
        q, scale, zero_point = bigkern.quantize(x * 2, axis=0, symmetric=False)
        return bigkern.dequantize(q, scale, zero_point, axis=0) + 1

    compiled = torch.compile(round_trip, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (5, 6)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), round_trip(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.quantize(torch.ones(3, dtype=torch.int32)), TypeError, "quantize: input must be floating, got torch.int32"),
        (lambda: bigkern.quantize(torch.ones(3, 4), axis=2), ValueError, "quantize: axis 2 is out of range for a tensor of 2 dimensions"),
        (lambda: bigkern.quantize(torch.ones(3, 4), group_size=3), ValueError, "quantize: group_size 3 does not divide the last dimension, 4"),
        (lambda: bigkern.quantize(torch.ones(3, 4), 1, 2), ValueError, "quantize: group_size goes with axis=None, or axis=0 on a matrix; got axis=1"),
        (lambda: bigkern.dequantize(torch.ones(3), torch.ones(())), TypeError, "dequantize: qinput must be int8, got torch.float32"),
        (lambda: bigkern.dequantize(torch.ones(3, dtype=torch.int8), torch.ones(()), dtype=torch.int8), TypeError, "dequantize: dtype must be floating, got torch.int8"),
        (lambda: bigkern.dequantize(torch.ones(3, 4, dtype=torch.int8), torch.ones(4), axis=0), ValueError, "dequantize: scale must have shape (3,), got (4,)"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
