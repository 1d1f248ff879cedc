"""max_pool2d on every backend: values, places and gradients, NaN, layouts, and torch's own errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.max_pool2d import max_pool2d_backward, max_pool2d_forward
from bigkern.reference import max_pool2d as reference
from tests.support import assert_within_policy, to_oracle

LAYOUTS = (torch.contiguous_format, torch.channels_last)
NAN, INF = float("nan"), float("inf")


def run(function, input, grad_output, *options):
    """(output, indices, gradient)"""
    input = input.detach().requires_grad_()
    output, indices = function(input, *options, return_indices=True)
    return output.detach(), indices, torch.autograd.grad(output, input, grad_output)[0]


def check(place, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, what=""):
    """Output and indices equal to the oracle's and PyTorch's, the gradient within the policy."""
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    shape = F.max_pool2d(input, *options).shape
    grad_output = torch.randn(shape, device=place.device).to(input.dtype)
    before = input.clone()
    with place.use():
        output, indices, grad = run(bigkern.max_pool2d, input, grad_output, *options)
    assert torch.equal(input.nan_to_num(7), before.nan_to_num(7))
    theirs, their_indices, their_grad = run(F.max_pool2d, input, grad_output, *options)
    torch.testing.assert_close(output, theirs, rtol=0, atol=0, equal_nan=True, msg=what)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, their_indices), what
    pairs = [value if isinstance(value, tuple) else (value, value) for value in options[:4] if value is not None]
    if stride is None:
        pairs.insert(1, pairs[0])
    flat = [number for pair in pairs for number in pair]
    exact, places = reference.max_pool2d_forward(to_oracle(input), *flat, ceil_mode)
    torch.testing.assert_close(output.double(), torch.as_tensor(exact), rtol=0, atol=0, equal_nan=True, msg=what)
    assert torch.equal(indices, torch.as_tensor(places).long()), what
    sizes = input.shape[2:]
    (right,) = reference.max_pool2d_backward(to_oracle(grad_output), places, *sizes, *flat)
    assert_within_policy(grad, right, their_grad, what=f"{what} gradient")
    return output, grad


CASES = [
    ((1, 1, 1, 1), 1, None, 0, 1, False),
    ((2, 3, 8, 8), 2, None, 0, 1, False),
    ((2, 5, 11, 9), 3, 2, 1, 1, False),
    ((1, 3, 11, 10), 3, 2, 1, 1, True),
    ((2, 17, 7, 5), (2, 3), (1, 2), (1, 0), 1, True),
    ((1, 2, 10, 13), 3, 1, 1, 2, False),
    ((1, 2, 10, 13), (3, 2), (2, 3), 1, (1, 3), True),
    ((1, 2, 5, 37), 1, 3, 0, 1, True),
]


@pytest.mark.parametrize(("shape", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), CASES)
def test_matches_oracle_and_torch(place, shape, kernel_size, stride, padding, dilation, ceil_mode):
    for dtype in place.dtypes:
        for layout in LAYOUTS:
            input = torch.randn(shape, device=place.device).to(dtype).to(memory_format=layout)
            output, grad = check(place, input, kernel_size, stride, padding, dilation, ceil_mode, f"{dtype} {layout}")
            assert output.is_contiguous(memory_format=layout)
            assert grad.is_contiguous(memory_format=layout)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), padded=st.booleans(), ceil_mode=st.booleans(),
    last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, sizes, kernel, stride, dilation, padded, ceil_mode, last, seed):
    torch.manual_seed(seed)
    # Room for one window at least.
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = (*sizes[:2], max(sizes[2], reach[0]), max(sizes[3], reach[1]))
    padding = tuple(k // 2 if padded else 0 for k in kernel)
    # Few different values: the first of equals is the maximum.
    input = torch.randint(-2, 3, shape, device=place.device).float().to(memory_format=LAYOUTS[last])
    check(place, input, kernel, stride, padding, dilation, ceil_mode)


def test_nan_and_infinity(place):
    for layout in LAYOUTS:
        input = torch.randn(2, 3, 9, 9, device=place.device).to(memory_format=layout)
        input[0, 0, 2, 2] = input[0, 0, 3, 3] = NAN
        input[0, 1], input[0, 2, 4, 4], input[1, 0, 0, 0] = -INF, INF, -INF
        check(place, input, 3, 2, 1)
        check(place, input, 2, 1, 0, 2)


def test_any_layout(place):
    input = torch.randn(2, 4, 9, 8, device=place.device)
    for layout in (
        input.transpose(2, 3),
        torch.cat([input, input], 1)[:, 2:6],
        torch.cat([input, input], 1).to(memory_format=torch.channels_last)[:, 2:6],
        input[:, :1].expand(2, 4, 9, 8),
        input.transpose(0, 1),
    ):
        check(place, layout, 3, 2, 1)
    with place.use():
        output = bigkern.max_pool2d(input[0], 2)
        assert torch.equal(output, bigkern.max_pool2d(input, 2)[0])
        leaf = input.clone().requires_grad_()
        bigkern.max_pool2d(leaf, 2).sum().backward()  # an expanded gradient
    other = input.clone().requires_grad_()
    F.max_pool2d(other, 2).sum().backward()
    assert torch.equal(leaf.grad, other.grad)


def test_empty_batch(place):
    input = torch.randn(0, 3, 8, 8, device=place.device, requires_grad=True)
    with place.use():
        output = bigkern.max_pool2d(input, 3, 2)
        output.sum().backward()
    assert output.shape == (0, 3, 3, 3)
    assert input.grad.shape == input.shape


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for layout in LAYOUTS:
        input = torch.randn(3, 20, 40, 40).to(memory_format=layout)
        results, grad_output = [], torch.randn(3, 20, 40, 40)
        for threads in (1, max(before, 4)):
            torch.set_num_threads(threads)
            results.append(run(bigkern.max_pool2d, input, grad_output, 3, 1, 1))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for layout in LAYOUTS:
        values = torch.randperm(2 * 2 * 5 * 5).view(2, 2, 5, 5).double()  # far apart: a step changes no maximum
        input = values.to(memory_format=layout).requires_grad_()
        with place.use():
            call = lambda x: bigkern.max_pool2d(x, 3, 2, 1) ** 2  # noqa: E731
            assert torch.autograd.gradcheck(call, input)
            assert torch.autograd.gradgradcheck(call, input)


def test_registration_is_complete():
    input = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    windows = (3, 3, 2, 2, 1, 1, 1, 1)
    torch.library.opcheck(max_pool2d_forward.op, (input, *windows, False))
    _, indices = max_pool2d_forward(input.detach(), *windows, False)
    grad_output = torch.randn(2, 3, 3, 3, requires_grad=True)
    torch.library.opcheck(max_pool2d_backward.op, (grad_output, indices, 6, 6, *windows))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    step = lambda input: bigkern.max_pool2d(input * 2, 3, 2, 1, ceil_mode=True).sin()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, layout in (((2, 3, 8, 9), 0), ((3, 4, 7, 7), 0), ((2, 5, 12, 10), 1)):
        input = torch.randn(shape).to(memory_format=LAYOUTS[layout])
        found = []
        for function in (compiled, step):
            leaf = input.detach().requires_grad_()
            output = function(leaf)
            found.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_module_is_torchs_and_small_calls_are_its_own():
    input = torch.randn(2, 3, 9, 9)
    ours = bigkern.nn.MaxPool2d(3, 2, 1, return_indices=True, ceil_mode=True)
    theirs = torch.nn.MaxPool2d(3, 2, 1, return_indices=True, ceil_mode=True)
    with bigkern.use_backend("cpu"):
        assert all(torch.equal(a, b) for a, b in zip(ours(input), theirs(input), strict=True))
    for size, chosen in ((4, "torch"), (256, "cpu")):
        (decision,) = bigkern.explain(bigkern.functional.max_pool2d, torch.randn(1, 3, size, size), 2)
        assert decision.chosen == chosen


X = torch.ones(2, 3, 5, 6)
ERRORS = [
    (lambda f: f(X, 3, padding=2), "pad should be at most half of effective kernel size, but got pad=2, kernel_size=3 and dilation=1"),
    (lambda f: f(X, 3, stride=0), "stride should not be zero"),
    (lambda f: f(X, 3, dilation=0), "dilation should be greater than zero, but got dilationH: 0 dilationW: 0"),
    (lambda f: f(X, 3, padding=-1), "pad must be non-negative, but got pad: -1"),
    (lambda f: f(X, 8), "Given input size: (3x5x6). Calculated output size: (3x0x0). Output size is too small"),
    (lambda f: f(X[0, 0], 2), "non-empty 3D or 4D (batch mode) tensor expected for input"),
    (lambda f: f(X, (2, 2, 2)), "max_pool2d: kernel_size must either be a single int, or a tuple of two ints"),
    (lambda f: f(X[:, :0], 2), "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:[2, 0, 5, 6]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_are_torchs(call, message):
    for function in (bigkern.max_pool2d, F.max_pool2d):
        with pytest.raises(RuntimeError) as caught:
            call(function)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(X.long(), 2), "max_pool2d: input must be floating, got torch.int64"),
        (lambda f: f(X, 0), "max_pool2d: kernel_size must be greater than zero, got (0, 0)"),
        (lambda f: f(X, 2, -1), "max_pool2d: stride must be greater than zero, got (-1, -1)"),
        (lambda f: f(torch.empty(1, 1, 2**16, 2**15, device="meta"), 2), "max_pool2d: a plane may have up to 2**31 - 1 elements, got (65536, 32768)"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(RuntimeError) as caught:
        call(bigkern.max_pool2d)
    assert str(caught.value) == message
