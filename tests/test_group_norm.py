"""group_norm on every backend: values, gradients, layouts, and torch's own errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.group_norm import group_norm_backward, group_norm_forward
from bigkern.reference import group_norm as reference
from tests.support import LOW_PRECISION, assert_within_policy, to_oracle


def oracle(tensors, grad_output, num_groups, eps):
    """(output and gradients, the sizes of the terms that cancel in each), in more digits than float64."""
    shape = tensors[0].shape
    input, grad = (
        to_oracle(t).astype(np.longdouble).reshape(shape[0], shape[1], -1) for t in (tensors[0], grad_output)
    )
    parameters = [None if t is None else to_oracle(t).astype(np.longdouble) for t in tensors[1:]]
    output, mean, rstd = reference.group_norm_forward(input, *parameters, num_groups, eps)
    present = [p is not None for p in parameters]
    grads = reference.group_norm_backward(grad, input, *parameters, mean, rstd, num_groups, True, *present)
    normalized = np.abs(reference.group_norm_forward(input, None, None, num_groups, eps)[0])
    scale = np.repeat(rstd, shape[1] // num_groups, 1)[:, :, None]
    terms = np.abs(grad if parameters[0] is None else grad * parameters[0][:, None]) * scale
    sizes = [None, terms, (np.abs(grad) * normalized).sum((0, 2)), np.abs(grad).sum((0, 2))]
    shapes = [shape, shape, shape[1:2], shape[1:2]]
    wanted = [True, True, *present]
    return [
        (result.reshape(to), None if size is None else size.reshape(to))
        for result, size, to, want in zip((output, *grads), sizes, shapes, wanted, strict=True)
        if want
    ]


def theirs(input, num_groups, weight, bias, eps):
    """F.group_norm, whose backward raises for a bias without a weight: one of ones is the same."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    return F.group_norm(input, num_groups, weight, bias, eps)


def run(function, tensors, grad_output, num_groups, eps):
    """[output, gradient of each tensor that is not None]"""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(tensors[0], num_groups, *tensors[1:], eps)
    wanted = [t for t in tensors if t is not None]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output.to(output.dtype))]


def draw(place, shape, dtype=torch.float32, present=(True, True), offset=0.0):
    input = torch.randn(shape, device=place.device) + offset
    parameters = [torch.randn(shape[1], device=place.device).to(dtype) if p else None for p in present]
    return [input.to(dtype), *parameters]


def check(place, tensors, num_groups, grad_output=None, eps=1e-5, what=""):
    """Output and gradients within the numerical policy, and the inputs as they were."""
    before = [None if t is None else t.clone() for t in tensors]
    if grad_output is None:
        grad_output = torch.randn(tensors[0].shape, device=place.device).to(tensors[0].dtype)
    with place.use():
        found = run(bigkern.group_norm, tensors, grad_output, num_groups, eps)
    assert all(t is None or torch.equal(t, copy) for t, copy in zip(tensors, before, strict=True))
    other_results = run(theirs, tensors, grad_output, num_groups, eps)
    expected = oracle(tensors, grad_output, num_groups, eps)
    for i, (mine, other, (right, size)) in enumerate(zip(found, other_results, expected, strict=True)):
        assert_within_policy(mine, right, other, what=f"{what} result {i}", magnitude=size)
    return found


@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [((2, 2), 1), ((1, 1, 3), 1), ((3, 6), 2), ((2, 6, 7), 3), ((3, 4, 5, 3), 4), ((2, 15, 3, 3), 3), ((2, 4, 2, 3, 2), 2)],
)  # fmt: skip
def test_matches_oracle(place, shape, num_groups):
    for dtype in place.dtypes:
        check(place, draw(place, shape, dtype), num_groups, what=str(dtype))


def test_absent_parameters_and_options(place):
    for present in ((True, False), (False, True), (False, False)):
        check(place, draw(place, (2, 6, 5), present=present), 2, eps=0.1)


@pytest.mark.parametrize(
    ("shape", "num_groups"), [((2, 4, 70, 70), 2), ((1, 3, 9001), 1), ((2, 200, 9, 9), 2), ((70, 64), 8)]
)
def test_sizes_beyond_one_piece_or_tile(place, shape, num_groups):
    if place.slow:
        shape = (min(shape[0], 5), min(shape[1], 8), *(min(size, 300 if len(shape) == 3 else 18) for size in shape[2:]))
        num_groups = min(num_groups, shape[1] // 2)
        num_groups = 1 if shape[1] % num_groups else num_groups
    for dtype in (torch.float32, torch.bfloat16)[: 1 if place.slow else 2]:
        check(place, draw(place, shape, dtype), num_groups, what=str(dtype))


@given(
    batch=st.integers(1, 5), planes=st.integers(1, 5), num_groups=st.integers(1, 4), positions=st.integers(1, 40),
    present=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_shape(place, batch, planes, num_groups, positions, present, seed, dtype):
    torch.manual_seed(seed)
    if batch * planes * positions == 1:
        positions = 2
    check(place, draw(place, (batch, planes * num_groups, positions), dtype, present), num_groups)


def test_any_layout(place):
    input, *parameters = draw(place, (4, 6, 5, 3))
    parameters = [torch.stack([p, p], 1)[:, 0] for p in parameters]
    grad_output = torch.randn(4, 6, 5, 3, device=place.device)
    for layout in (
        input.to(memory_format=torch.channels_last),
        input.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([input, input], 1)[:, 3:9],
        input[:, :1].expand(4, 6, 5, 3),
    ):
        check(place, [layout, *parameters], 2, grad_output)
    for grad in (grad_output.to(memory_format=torch.channels_last), grad_output[:1, :1, :1].expand(4, 6, 5, 3)):
        check(place, [input, *parameters], 3, grad)


def test_empty_tensors(place):
    for shape in ((0, 6, 5), (2, 6, 0)):
        tensors = draw(place, shape)
        with place.use():
            output, grad_input, *grads = run(bigkern.group_norm, tensors, torch.ones(shape), 2, 1e-5)
        assert output.shape == grad_input.shape == shape
        assert all((grad == 0).all() and grad.shape == (6,) for grad in grads)


def test_a_large_common_offset_costs_no_digits(place):
    tensors = draw(place, (3, 6, 9, 9))
    noise = (tensors[0] * 512).round() / 512  # multiples of 2^-9: shifting them is exact
    grad_output = torch.randn_like(noise)
    with place.use():
        right = run(bigkern.group_norm, [noise, *tensors[1:]], grad_output, 2, 1e-5)
        found = run(bigkern.group_norm, [noise + 1e4, *tensors[1:]], grad_output, 2, 1e-5)
    for mine, other in zip(found, right, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    check(place, [torch.full_like(noise, 1e4 + 0.1), *tensors[1:]], 3, grad_output)


def test_non_finite_values_stay_in_their_group(place):
    tensors = draw(place, (2, 6, 4, 4))
    dirty = tensors[0].clone()
    dirty[0, 1, 2, 2], dirty[1, 4, 0, 0] = float("nan"), float("inf")
    with place.use():
        clean = bigkern.group_norm(tensors[0], 3, *tensors[1:])
        output = bigkern.group_norm(dirty, 3, *tensors[1:])
    bad = torch.zeros_like(output, dtype=torch.bool)
    bad[0, 0:2] = bad[1, 4:6] = True
    assert torch.equal(output[~bad], clean[~bad])
    assert output[bad].isnan().all()


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for shape in ((5, 6, 40, 40), (1, 64, 9, 9)):
        tensors, results = draw(_Here, shape), []
        grad_output = torch.randn(shape)
        for threads in (1, max(before, 4)):
            torch.set_num_threads(threads)
            results.append(run(bigkern.group_norm, tensors, grad_output, 2, 1e-5))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _Here:
    device = "cpu"


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for present in ((True, True), (False, False)):
        tensors = draw(place, (2, 4, 3), torch.float64, present)
        tensors = [None if t is None else t.requires_grad_() for t in tensors]
        call = lambda input, *parameters: bigkern.group_norm(input, 2, *parameters)  # noqa: E731
        with place.use():
            assert torch.autograd.gradcheck(call, tensors)
            assert torch.autograd.gradgradcheck(call, tensors)


def test_only_what_requires_grad_gets_one(place):
    tensors = draw(place, (4, 6, 5))
    grad_output = torch.randn(4, 6, 5, device=place.device)
    with place.use():
        everything = run(bigkern.group_norm, tensors, grad_output, 2, 1e-5)[1:]
        for wanted in range(3):
            leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            bigkern.group_norm(leaves[0], 2, *leaves[1:]).backward(grad_output)
            torch.testing.assert_close(leaves[wanted].grad, everything[wanted])
            assert all(t.grad is None for i, t in enumerate(leaves) if i != wanted)


def test_float32_parameters_beside_lower_precision(place):
    for dtype in LOW_PRECISION:
        input, *parameters = draw(place, (4, 6, 5))
        found = check(place, [input.to(dtype), *parameters], 2)
        assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]


def test_registration_is_complete():
    input, weight, bias = (t.requires_grad_() for t in draw(_Here, (3, 4, 5)))
    torch.library.opcheck(group_norm_forward.op, (input, weight, bias, 2, 1e-5))
    _, mean, rstd = (t.detach() for t in group_norm_forward(input, weight, bias, 2, 1e-5))
    grad_output = torch.randn(3, 4, 5, requires_grad=True)
    torch.library.opcheck(group_norm_backward.op, (grad_output, input, weight, bias, mean, rstd, 2, True, True, True))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    step = lambda *tensors: bigkern.group_norm(tensors[0] * 2, 2, *tensors[1:]).sin()  # noqa: E731
    call = lambda function: lambda input, _, weight, bias, eps: function(input, weight, bias)  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 4, 5), (2, 4, 3), (5, 4, 2, 6)):
        tensors, grad_output = draw(_Here, shape), torch.randn(shape)
        found, right = (run(call(f), tensors, grad_output, 2, 1e-5) for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_module_is_torchs_and_small_calls_are_its_own():
    ours, theirs = bigkern.nn.GroupNorm(2, 6), torch.nn.GroupNorm(2, 6)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(3, 6, 4)
    with bigkern.use_backend("cpu"):
        torch.testing.assert_close(ours(input), theirs(input))
    for tensor, chosen in (
        (input, "torch"),
        (torch.randn(4, 6, 64, 64), "torch"),
        (torch.randn(4, 6, 64, 64).half(), "cpu"),
        (torch.randn(4, 6, 64, 64).half().to(memory_format=torch.channels_last), "torch"),
    ):
        (decision,) = bigkern.explain(bigkern.functional.group_norm, tensor, 2)
        assert decision.chosen == chosen
    assert bigkern.group_norm(tensor, 2).is_contiguous(memory_format=torch.channels_last)
    bias = torch.ones(6, requires_grad=True)  # PyTorch's own backward raises here
    (grad,) = torch.autograd.grad(bigkern.group_norm(input, 2, None, bias).sum(), bias)
    assert torch.equal(grad, torch.full((6,), 12.0))


X = torch.ones(4, 6, 5)
ERRORS = [
    (lambda f: f(X, 4), RuntimeError, "Expected number of channels in input to be divisible by num_groups, but got input of shape [4, 6, 5] and num_groups=4"),
    (lambda f: f(X, -1), RuntimeError, "Expected num groups to be greater than 0, got -1"),
    (lambda f: f(X, 2, torch.ones(5)), RuntimeError, "Expected weight to be a vector of size equal to the number of channels in input, but got weight of shape [5] and input of shape [4, 6, 5]"),
    (lambda f: f(X[0, 0], 2), RuntimeError, "Expected at least 2 dimensions for input tensor but received 1"),
    (lambda f: f(X[:1, :2, 0], 2), ValueError, "Expected more than 1 value per channel when training, got input size [1, 2]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_are_torchs(call, error, message):
    for function in (bigkern.group_norm, F.group_norm):
        with pytest.raises(error) as caught:
            call(function)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X, 0), RuntimeError, "Expected num groups to be greater than 0, got 0"),
        (lambda f: f(X.long(), 2), RuntimeError, "group_norm: input must be floating, got torch.int64"),
        (lambda f: f(X, 2, torch.ones(6).int()), RuntimeError, "group_norm: weight must be floating, got torch.int32"),
        (lambda f: f(X, 2, None, torch.ones(6, device="meta")), RuntimeError, "group_norm: bias is on meta, input on cpu"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.group_norm)
    assert str(caught.value) == message
