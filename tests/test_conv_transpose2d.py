import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
import bigkern.functional as F
from bigkern import nn
from bigkern.ops.conv_transpose2d import conv_transpose2d_backward, conv_transpose2d_forward
from bigkern.reference import conv_transpose2d as reference
from tests.conv_cases import LAYOUTS, NAMES, drawn, with_gradients
from tests.support import Place, assert_within_policy, to_oracle

CPU = Place("cpu", "cpu")
# (N, C, H, W), out_channels, kernel, and what is not as usual.
CASES = [
    ((1, 1, 1, 1), 1, (1, 1), {}),
    ((2, 17, 5, 6), 3, (4, 4), {"stride": 2, "padding": 1}),  # a generator's
    ((2, 3, 4, 5), 33, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((1, 4, 5, 4), 6, (2, 3), {"stride": (1, 3), "groups": 2, "output_padding": (0, 2)}),
    ((2, 2, 4, 3), 3, (3, 2), {"dilation": (2, 3), "output_padding": (1, 2), "padding": (1, 0)}),
    ((1, 3, 3, 4), 2, (3, 3), {"stride": 4, "dilation": 2}),  # pixels that no tap reaches
    ((2, 5, 4, 6), 5, (3, 3), {"groups": 5, "stride": 2, "padding": 1}),
    ((2, 3, 4, 4), 6, (2, 2), {"groups": 3, "stride": 3}),
    ((0, 3, 5, 5), 2, (3, 3), {}),
]


def settings_of(options):
    """All options of F.conv_transpose2d, in its order."""
    return tuple(options.get(name, usual) for name, usual in
                 (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1)))  # fmt: skip


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def numbers_of(options):
    """The numbers that the kernels take, in their order."""
    stride, padding, output_padding, groups, dilation = settings_of(options)
    return (*both(stride), *both(padding), *both(output_padding), *both(dilation), groups)


def make_inputs(place, shape, out_channels, kernel, options, dtype, bias=True, seed=0):
    """(input, weight, bias, grad_output), scaled so that outputs are about 1."""
    stride, padding, output_padding, groups, dilation = settings_of(options)
    pairs = (both(value) for value in (stride, padding, output_padding, dilation))
    size = [reference.transposed_size(*numbers) for numbers in zip(shape[2:], kernel, *pairs, strict=True)]
    shapes = (shape, (shape[1], out_channels // groups, *kernel), (out_channels,) if bias else None)
    input, weight, bias, grad_output = drawn(place, (*shapes, (shape[0], out_channels, *size)), dtype, seed)
    return input, weight / math.sqrt(weight[:, 0].numel() / groups), bias, grad_output


def check(place, input, weight, bias, grad_output, options):
    """bigkern's output and gradients keep the numerical policy."""
    arguments = settings_of(options)
    before = [None if t is None else t.clone() for t in (input, weight, bias, grad_output)]
    with place.use():
        actual = with_gradients(
            lambda x, w, b: bigkern.conv_transpose2d(x, w, b, *arguments), input, weight, bias, grad_output
        )
    for tensor, copy in zip((input, weight, bias, grad_output), before, strict=True):
        assert tensor is None or torch.equal(tensor, copy)
    plain = lambda x, w, b: torch.nn.functional.conv_transpose2d(x, w, b, *arguments)  # noqa: E731
    theirs = with_gradients(plain, input, weight, bias, grad_output)
    # Where the dtype is float64 itself, the truth needs more digits.
    wide = np.longdouble if input.dtype == torch.float64 else np.float64
    x, w, b, g = (None if t is None else to_oracle(t).astype(wide) for t in (input, weight, bias, grad_output))
    numbers = numbers_of(options)
    oracle = reference.conv_transpose2d_forward(x, w, b, *numbers)
    oracle += reference.conv_transpose2d_backward(g, x, w, *numbers, True, True, b is not None)
    for name, got, expected, torch_result in zip(NAMES, actual, oracle, theirs, strict=False):
        assert got.dtype == input.dtype
        assert name != "output" or got.stride() == torch_result.stride() or not got.numel()
        assert_within_policy(got, expected, torch_result, what=f"{name} {tuple(input.shape)} {options}")


@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), CASES)
def test_matches_oracle(place, shape, out_channels, kernel, options):
    for dtype in place.dtypes:
        tensors = make_inputs(place, shape, out_channels, kernel, options, dtype)
        check(place, *tensors, options)
        if not place.slow or dtype == torch.float16:
            last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
            check(place, *last, options)


@settings(max_examples=8)
@given(
    data=st.data(), N=st.integers(1, 3), groups=st.integers(1, 3), H=st.integers(1, 6), W=st.integers(1, 6),
    seed=st.integers(0, 99), bias=st.booleans(), last=st.booleans(),
)  # fmt: skip
def test_any_shape(place, data, N, groups, H, W, seed, bias, last):
    pair = lambda low, high: (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))  # noqa: E731
    channels, out_channels = (groups * count for count in pair(1, 6))
    kernel, stride, dilation = pair(1, 3), pair(1, 3), pair(1, 2)
    least = [(size - 1) * s + d * (k - 1) for size, s, d, k in zip((H, W), stride, dilation, kernel, strict=True)]
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in least)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    options = {"stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    tensors = make_inputs(place, (N, channels, H, W), out_channels, kernel, options, torch.float32, bias, seed)
    if last:
        tensors = [LAYOUTS["channels_last"](t) if t is not None and t.ndim == 4 else t for t in tensors]
    check(place, *tensors, options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(place, layout):
    arrange, options = LAYOUTS[layout], {"padding": 1, "stride": (1, 2)}
    input, weight, bias, grad_output = make_inputs(place, (2, 4, 5, 6), 3, (3, 2), options, torch.float32)
    bias = bias.repeat_interleave(2)[::2]
    check(place, arrange(input), weight, bias, grad_output, options)
    check(place, arrange(input), arrange(weight), bias, arrange(grad_output), options)


def test_is_the_transpose_of_conv2d(place):
    input, weight, _, grad_output = make_inputs(place, (2, 3, 5, 4), 4, (3, 3), {"stride": 2}, torch.float32)
    with place.use():
        down = bigkern.conv2d(grad_output, weight, None, 2)
        up = bigkern.conv_transpose2d(input, weight, None, 2)
    torch.testing.assert_close((down * input).sum(), (up * grad_output).sum())


def test_one_image_without_a_batch(place):
    input, weight, bias, _ = make_inputs(place, (2, 2, 4, 3), 3, (3, 3), {}, torch.float32)
    with place.use():
        actual = F.conv_transpose2d(input[0], weight, bias)
    torch.testing.assert_close(actual, torch.nn.functional.conv_transpose2d(input[0], weight, bias))


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("finite differences need float64")
    for groups in (1, 2):
        options = {"groups": groups, "stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0)}
        tensors = make_inputs(place, (1, 2, 3, 2), 2, (2, 2), options, torch.float64, seed=3)[:3]
        leaves = [t.requires_grad_() for t in tensors]
        function = lambda x, w, b: bigkern.conv_transpose2d(x, w, b, *settings_of(options))  # noqa: B023, E731
        with place.use():
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


def test_reference_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    numbers = numbers_of({"stride": (2, 1), "padding": 1, "output_padding": (1, 0), "groups": 2})
    x, w, b = rng.normal(size=(2, 4, 3, 4)), rng.normal(size=(4, 3, 3, 2)), rng.normal(size=6)
    g = rng.normal(size=reference.conv_transpose2d_forward(x, w, b, *numbers)[0].shape)
    gradients = reference.conv_transpose2d_backward(g, x, w, *numbers, True, True, True)
    loss = lambda: (reference.conv_transpose2d_forward(x, w, b, *numbers)[0] * g).sum()  # noqa: E731
    for parameter, gradient in zip((x, w, b), gradients, strict=True):
        for index in list(np.ndindex(parameter.shape))[::3]:
            original = parameter[index]
            parameter[index] = original + 1e-6
            above = loss()
            parameter[index] = original - 1e-6
            slope = (above - loss()) / 2e-6
            parameter[index] = original
            assert abs(slope - gradient[index]) < 1e-6


def test_result_does_not_depend_on_the_number_of_threads():
    tensors = make_inputs(CPU, (2, 40, 30, 30), 24, (4, 4), {"stride": 2}, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with bigkern.use_backend("cpu"):
                results.append(with_gradients(lambda x, w, b: bigkern.conv_transpose2d(x, w, b, 2), *tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_registration_is_complete():
    for last in (False, True):
        options = {"padding": 1, "stride": 2, "output_padding": 1}
        tensors = make_inputs(CPU, (2, 4, 3, 4), 3, (3, 3), options, torch.float32)
        if last:
            tensors = [LAYOUTS["channels_last"](t) if t.ndim == 4 else t for t in tensors]
        input, weight, bias, grad_output = (t.requires_grad_() for t in tensors)
        numbers = numbers_of(options)
        opcheck(torch.ops.bigkern.conv_transpose2d_forward.default, (input, weight, bias, *numbers))
        arguments = (grad_output, input, weight, *numbers, last, True, last)
        opcheck(torch.ops.bigkern.conv_transpose2d_backward.default, arguments)


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    def function(x, w, b):
        return bigkern.conv_transpose2d(x * 2, w, b, 2, 1).sum((2, 3))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for N, size in ((2, 5), (3, 6)):
        tensors = make_inputs(CPU, (N, 3, size, size + 1), 2, (4, 4), {}, torch.float32)[:3]
        leaves = [t.requires_grad_() for t in tensors]
        results = [f(*leaves) for f in (compiled, function)]
        gradients = [torch.autograd.grad(result.square().sum(), leaves) for result in results]
        assert torch.equal(*results)
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@bigkern.use_backend("cpu")
def test_autocast_runs_in_lower_precision():
    input, weight, bias, _ = make_inputs(CPU, (2, 3, 4, 5), 4, (3, 3), {}, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = bigkern.conv_transpose2d(input, weight, bias)
    assert torch.equal(output, bigkern.conv_transpose2d(*(t.bfloat16() for t in (input, weight, bias))))


def test_module_is_a_drop_in(place):
    options = {"stride": 2, "padding": (1, 0), "groups": 2, "dilation": 2, "device": place.device}
    torch.manual_seed(3)
    theirs = torch.nn.ConvTranspose2d(4, 6, 3, **options)
    torch.manual_seed(3)
    ours = nn.ConvTranspose2d(4, 6, 3, **options)
    for (name, expected), (ours_name, actual) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert name == ours_name
        assert torch.equal(actual, expected)
    input = torch.randn(2, 4, 5, 4, device=place.device)
    with place.use():
        for output_size in (None, (12, 11), [12, 12]):
            torch.testing.assert_close(ours(input, output_size), theirs(input, output_size))
    assert repr(ours) == repr(theirs)
    with pytest.raises(ValueError, match='Only "zeros" padding mode is supported for ConvTranspose2d'):
        nn.ConvTranspose2d(4, 6, 3, padding_mode="reflect")


IMAGE = torch.ones(2, 4, 5, 6)
WEIGHT = torch.ones(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv_transpose2d(IMAGE[0, 0], WEIGHT), ValueError, "conv_transpose2d: input must be [N, C, H, W] or [C, H, W], got shape (5, 6)"),
        (lambda: F.conv_transpose2d(IMAGE[:, :3], WEIGHT), ValueError, "conv_transpose2d: input has 3 channels, but weight of shape (4, 3, 3, 3) with groups=1 takes 4, and its first size must be a multiple of groups"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, groups=3), ValueError, "conv_transpose2d: input has 4 channels, but weight of shape (4, 3, 3, 3) with groups=3 takes 4, and its first size must be a multiple of groups"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, torch.ones(3), groups=2), ValueError, "conv_transpose2d: bias must have shape (6,), got (3,)"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT.double()), TypeError, "conv_transpose2d: weight has dtype torch.float64, input has torch.float32"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, dilation=0), ValueError, "conv_transpose2d: dilation must be at least 1, got (0, 0)"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, padding="same"), ValueError, "conv_transpose2d: padding must be an int or a tuple of two, got 'same'"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, stride=2, output_padding=2), ValueError, "conv_transpose2d: output_padding must be smaller than stride or dilation, got (2, 2) with stride (2, 2) and dilation (1, 1)"),
        (lambda: F.conv_transpose2d(IMAGE, WEIGHT, padding=4), ValueError, "conv_transpose2d: padding (4, 4) leaves nothing of the output: its size would be (-1, 0)"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_kernels_are_named_by_explain():
    with bigkern.use_backend("cpu"):
        decisions = bigkern.explain(bigkern.conv_transpose2d, IMAGE, WEIGHT)
    assert [d.kernel for d in decisions] == [conv_transpose2d_forward.name] == ["conv_transpose2d_forward"]
    assert conv_transpose2d_backward.name == "conv_transpose2d_backward"
