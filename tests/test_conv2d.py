import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
import bigkern.functional as F
from bigkern import nn
from bigkern.ops.conv2d import ACTIVATIONS, conv2d_backward, conv2d_forward
from bigkern.reference import conv2d as reference
from tests.conv_cases import LAYOUTS, NAMES, drawn, with_gradients
from tests.support import Place, assert_within_policy, to_oracle

CPU = Place("cpu", "cpu")
# (N, C, H, W), out_channels, kernel, and what is not as usual. Ones, primes, one off a tile.
CASES = [
    ((1, 1, 1, 1), 1, (1, 1), {}),
    ((2, 3, 7, 9), 5, (3, 3), {"padding": 1}),
    ((2, 17, 5, 6), 3, (1, 1), {}),
    ((1, 4, 9, 7), 33, (3, 2), {"stride": (2, 3), "padding": (2, 1)}),
    ((2, 3, 11, 8), 4, (3, 3), {"dilation": (2, 3), "padding": (4, 3)}),
    ((1, 2, 10, 13), 2, (3, 3), {"stride": 2, "dilation": 2, "padding": 3}),
    ((2, 6, 5, 7), 4, (2, 3), {"groups": 2, "padding": 1, "stride": (1, 2)}),
    ((2, 5, 6, 9), 5, (3, 3), {"groups": 5, "padding": 1}),
    ((1, 18, 7, 6), 18, (3, 2), {"groups": 18, "stride": 2, "padding": (1, 0), "dilation": (1, 2)}),
    ((2, 3, 6, 5), 6, (3, 3), {"groups": 3}),
    ((0, 3, 5, 5), 2, (3, 3), {}),
    ((1, 2, 2, 3), 3, (2, 3), {"padding": (6, 5), "stride": 5}),
]


def settings_of(options):
    """All options of F.conv2d, in its order."""
    return tuple(options.get(name, usual) for name, usual in
                 (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)))  # fmt: skip


def both(value):
    return value if isinstance(value, tuple) else (value, value)


def make_inputs(place, shape, out_channels, kernel, options, dtype, bias=True, seed=0):
    """(input, weight, bias, grad_output), scaled so that outputs are about 1."""
    stride, padding, dilation, groups = settings_of(options)
    size = [
        reference.output_size(*numbers)
        for numbers in zip(shape[2:], kernel, both(stride), both(padding), both(dilation), strict=True)
    ]
    shapes = (shape, (out_channels, shape[1] // groups, *kernel), (out_channels,) if bias else None)
    input, weight, bias, grad_output = drawn(place, (*shapes, (shape[0], out_channels, *size)), dtype, seed)
    return input, weight / math.sqrt(weight[0].numel()), bias, grad_output


def oracle_of(input, weight, bias, grad_output, options, activation):
    # Where the dtype is float64 itself, the truth needs more digits.
    wide = np.longdouble if input.dtype == torch.float64 else np.float64
    x, w, b, g = (None if t is None else to_oracle(t).astype(wide) for t in (input, weight, bias, grad_output))
    *pairs, groups = settings_of(options)
    numbers = (*(number for value in pairs for number in both(value)), groups)
    (output,) = reference.conv2d_forward(x, w, b, *numbers, activation)
    # Where a sum that rounds to the other side of zero decides about a gradient, the kernel's own sign is the truth.
    return output, lambda mask: reference.conv2d_backward(g * mask, x, w, *numbers, True, True, b is not None)


def check(place, input, weight, bias, grad_output, options, activation="relu"):
    """bigkern's output and gradients keep the numerical policy."""
    arguments = settings_of(options)
    before = [None if t is None else t.clone() for t in (input, weight, bias, grad_output)]
    with place.use():
        actual = with_gradients(
            lambda x, w, b: bigkern.conv2d_act(x, w, b, *arguments, activation), input, weight, bias, grad_output
        )
    for tensor, copy in zip((input, weight, bias, grad_output), before, strict=True):
        assert tensor is None or torch.equal(tensor, copy)
    conv = lambda x, w, b: torch.nn.functional.conv2d(x, w, b, *arguments)  # noqa: E731
    mask = (actual[0] > 0).to(grad_output) if activation == "relu" else torch.ones_like(grad_output)
    theirs = with_gradients(conv, input, weight, bias, grad_output * mask)
    theirs[0] = ACTIVATIONS[activation](theirs[0])
    output, gradients = oracle_of(input, weight, bias, grad_output, options, activation)
    oracle = (output, *gradients(to_oracle(mask)))
    for name, got, expected, torch_result in zip(NAMES, actual, oracle, theirs, strict=False):
        assert got.dtype == input.dtype
        assert name != "output" or got.stride() == torch_result.stride() or not got.numel()
        assert_within_policy(got, expected, torch_result, what=f"{name} {tuple(input.shape)} {options}")


@pytest.mark.parametrize(("shape", "out_channels", "kernel", "options"), CASES)
def test_matches_oracle(place, shape, out_channels, kernel, options):
    for dtype in place.dtypes:
        tensors = make_inputs(place, shape, out_channels, kernel, options, dtype)
        check(place, *tensors, options)
        last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        if not place.slow or dtype == torch.float16:
            check(place, *last, options, "none")


def test_more_than_one_block_in_every_direction(place):
    if place.backend != "cpu":
        pytest.skip("interpreted blocks are small enough for the sizes above")
    for dtype in place.dtypes:
        # 531 values deep, 120 channels, 2 x 15 x 19 pixels; then many pixels for few weights, whose sum is cut in parts
        for shape, out_channels, options in (((2, 59, 15, 19), 120, {"padding": 1}), ((3, 2, 70, 61), 3, {})):
            tensors = make_inputs(place, shape, out_channels, (3, 3), options, dtype)
            check(place, *tensors, options)
            last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
            check(place, *last, options)


def test_depthwise_rows_longer_than_a_band(place):
    if place.backend != "cpu":
        pytest.skip("bands are the C++ kernels' own")
    options = {"groups": 2, "stride": 2, "padding": 1}
    tensors = make_inputs(place, (1, 2, 40, 600), 2, (3, 3), options, torch.float32)
    check(place, *tensors, options)


@settings(max_examples=8)
@given(
    data=st.data(), N=st.integers(1, 3), groups=st.integers(1, 3), H=st.integers(1, 12), W=st.integers(1, 12),
    seed=st.integers(0, 99), bias=st.booleans(), last=st.booleans(),
)  # fmt: skip
def test_any_shape(place, data, N, groups, H, W, seed, bias, last):
    pair = lambda low, high: (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))  # noqa: E731
    channels, out_channels = (groups * count for count in pair(1, 6))
    kernel, padding = pair(1, 3), pair(0, 3)
    options = {"stride": pair(1, 3), "padding": padding, "groups": groups}
    fits = [size + 2 * p >= 2 * (k - 1) + 1 for size, p, k in zip((H, W), padding, kernel, strict=True)]
    options["dilation"] = pair(1, 2) if all(fits) else (1, 1)
    assume(H + 2 * padding[0] >= kernel[0] and W + 2 * padding[1] >= kernel[1])
    tensors = make_inputs(place, (N, channels, H, W), out_channels, kernel, options, torch.float32, bias, seed)
    if last:
        tensors = [LAYOUTS["channels_last"](t) if t is not None and t.ndim == 4 else t for t in tensors]
    check(place, *tensors, options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(place, layout):
    arrange = LAYOUTS[layout]
    for groups, kernel, options in ((1, (3, 2), {"padding": 1, "stride": (1, 2)}), (4, (3, 3), {"padding": 1})):
        options = {**options, "groups": groups}
        input, weight, bias, grad_output = make_inputs(place, (2, 4, 6, 7), 4, kernel, options, torch.float32)
        bias = bias.repeat_interleave(2)[::2]
        check(place, arrange(input), weight, bias, grad_output, options)
        check(place, input, arrange(weight), bias, grad_output, options)
        check(place, arrange(input), arrange(weight), bias, arrange(grad_output), options)


def test_memory_format_is_that_of_pytorch():
    last = {"memory_format": torch.channels_last}
    for C, H, W in ((3, 4, 5), (1, 4, 5), (3, 1, 1), (1, 1, 1)):
        image, weight = torch.randn(2, C, H, W), torch.randn(2, C, 1, 1)
        cut = torch.randn(2, C + 1, H, W).to(**last)[:, :C]
        for x in (image, image.to(**last), cut, image.mT.contiguous().mT):
            for w in (weight, weight.to(**last)):
                with bigkern.use_backend("cpu"):
                    ours = bigkern.conv2d(x, w, None)
                expected = torch.nn.functional.conv2d(x, w, None)
                assert ours.is_contiguous(**last) == expected.is_contiguous(**last), (x.stride(), w.stride())
                assert ours.is_contiguous() == expected.is_contiguous(), (x.stride(), w.stride())


def test_nan_and_infinity_stay_in_their_window(place):
    for dtype in place.dtypes:
        input, weight, bias, _ = make_inputs(place, (1, 2, 9, 9), 3, (3, 3), {}, dtype)
        clean = input.clone()
        input[0, 1, 2, 7] = float("nan")
        with place.use():
            output = bigkern.conv2d_act(input, weight, bias)
            expected = bigkern.conv2d_act(clean, weight, bias)
        touched = torch.zeros_like(output, dtype=torch.bool)
        touched[:, :, 0:3, 5:7] = True
        assert output[touched].isnan().all()
        assert torch.equal(output[~touched], expected[~touched])
        input[0, 1, 2, 7] = float("inf")
        with place.use():
            output = bigkern.conv2d(input, weight, bias)
        assert output[touched].isinf().all()
        assert output[~touched].isfinite().all()


def test_named_padding(place):
    for kernel, dilation in (((3, 3), 1), ((2, 4), 1), ((3, 2), (2, 3))):
        input, weight, bias, _ = make_inputs(place, (2, 2, 9, 8), 3, kernel, {}, torch.float32)
        for padding in ("same", "valid"):
            with place.use():
                actual = F.conv2d(input, weight, bias, 1, padding, dilation)
            expected = torch.nn.functional.conv2d(input, weight, bias, 1, padding, dilation)
            torch.testing.assert_close(actual, expected)


def test_one_image_without_a_batch(place):
    input, weight, bias, _ = make_inputs(place, (2, 2, 9, 8), 3, (3, 3), {}, torch.float32)
    with place.use():
        torch.testing.assert_close(F.conv2d(input[0], weight, bias), torch.nn.functional.conv2d(input[0], weight, bias))


def test_only_the_asked_gradients(place):
    input, weight, bias, grad_output = make_inputs(place, (2, 2, 5, 6), 3, (3, 3), {}, torch.float32)
    oracle = oracle_of(input, weight, bias, grad_output, {}, "none")[1](1.0)
    for wanted in range(3):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((input, weight, bias))]
        with place.use():
            bigkern.conv2d(*leaves).backward(grad_output)
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
        assert_within_policy(leaves[wanted].grad, oracle[wanted], None)


@pytest.mark.parametrize("groups", [1, 2])
def test_first_and_second_derivatives(place, groups):
    if torch.float64 not in place.dtypes:
        pytest.skip("finite differences need float64")
    options = {"groups": groups, "padding": 1, "stride": (2, 1)}
    tensors = make_inputs(place, (1, 2, 4, 3), 2, (2, 2), options, torch.float64, seed=3)[:3]
    leaves = [t.requires_grad_() for t in tensors]
    with place.use():
        for activation in ACTIVATIONS:
            function = lambda x, w, b, a=activation: bigkern.conv2d_act(x, w, b, *settings_of(options), a)  # noqa: E731
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


def test_reference_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    numbers = (2, 1, 1, 2, 1, 2, 2)
    x, w, b = rng.normal(size=(2, 4, 5, 6)), rng.normal(size=(6, 2, 3, 2)), rng.normal(size=6)
    g = rng.normal(size=reference.conv2d_forward(x, w, b, *numbers, "none")[0].shape)
    gradients = reference.conv2d_backward(g, x, w, *numbers, True, True, True)
    loss = lambda: (reference.conv2d_forward(x, w, b, *numbers, "none")[0] * g).sum()  # noqa: E731
    for parameter, gradient in zip((x, w, b), gradients, strict=True):
        for index in list(np.ndindex(parameter.shape))[::5]:
            original = parameter[index]
            parameter[index] = original + 1e-6
            above = loss()
            parameter[index] = original - 1e-6
            slope = (above - loss()) / 2e-6
            parameter[index] = original
            assert abs(slope - gradient[index]) < 1e-6


def test_result_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    for groups in (1, 3, 24):
        options = {"groups": groups, "padding": 1}
        tensors = make_inputs(CPU, (2, 24, 60, 60), 24, (3, 3), options, torch.float32)
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                with bigkern.use_backend("cpu"):
                    function = lambda x, w, b: bigkern.conv2d_act(x, w, b, *settings_of(options))  # noqa: B023, E731
                    results.append(with_gradients(function, *tensors))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_registration_is_complete():
    for groups, last in ((1, False), (2, True)):
        options = {"groups": groups, "padding": 1}
        tensors = make_inputs(CPU, (2, 4, 5, 6), 4, (3, 3), options, torch.float32)
        if last:
            tensors = [LAYOUTS["channels_last"](t) if t.ndim == 4 else t for t in tensors]
        input, weight, bias, grad_output = (t.requires_grad_() for t in tensors)
        numbers = (1, 1, 1, 1, 1, 1, groups)
        activation, needs = ("relu", (True, True, True)) if last else ("none", (False, True, False))
        opcheck(torch.ops.bigkern.conv2d_forward.default, (input, weight, bias, *numbers, activation))
        opcheck(torch.ops.bigkern.conv2d_backward.default, (grad_output, input, weight, *numbers, *needs))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    def function(x, w, b):
        return F.conv2d(bigkern.conv2d_act(x * 2, w, b, 1, 1), w, b, 2).sum((2, 3))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for N, size in ((2, 7), (3, 10)):
        tensors = make_inputs(CPU, (N, 3, size, size + 1), 3, (3, 3), {}, torch.float32)[:3]
        leaves = [t.requires_grad_() for t in tensors]
        results = [f(*leaves) for f in (compiled, function)]
        gradients = [torch.autograd.grad(result.square().sum(), leaves) for result in results]
        assert torch.equal(*results)
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@bigkern.use_backend("cpu")
def test_autocast_runs_in_lower_precision(dtype):
    input, weight, bias, _ = make_inputs(CPU, (2, 3, 5, 6), 4, (3, 3), {}, torch.float32)
    leaves = [t.requires_grad_() for t in (input, weight.to(dtype), bias)]
    with torch.autocast("cpu", dtype):
        output = bigkern.conv2d(*leaves)
    assert torch.equal(output, bigkern.conv2d(*(t.to(dtype) for t in leaves)))
    output.float().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32, dtype, torch.float32]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_module_is_a_drop_in(place, mode):
    options = {"stride": 2, "padding": (1, 2), "groups": 2, "padding_mode": mode, "device": place.device}
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(4, 6, 3, **options)
    torch.manual_seed(3)
    ours = nn.Conv2d(4, 6, 3, **options)
    for (name, expected), (ours_name, actual) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert name == ours_name
        assert torch.equal(actual, expected)
    input = torch.randn(2, 4, 7, 8, device=place.device)
    with place.use():
        torch.testing.assert_close(ours(input), theirs(input))
        activated = nn.Conv2dAct(4, 6, 3, **options)
        activated.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(activated(input), theirs(input).relu())
    assert repr(ours) == repr(theirs)
    assert repr(activated).endswith(", activation='relu')")
    same = nn.Conv2d(4, 6, 3, padding="same", padding_mode=mode)
    assert same(torch.randn(1, 4, 7, 8)).shape == (1, 6, 7, 8)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_folds_into_the_convolution(place, affine):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=affine, device=place.device).to(memory_format=torch.channels_last)
    bn = torch.nn.BatchNorm2d(5, affine=affine, device=place.device)
    input = torch.randn(4, 3, 8, 7, device=place.device)
    with torch.no_grad():
        for parameter in bn.parameters():
            parameter.uniform_(0.5, 2)
        bn(3 * conv(input) + 1)  # running statistics that are neither 0 nor 1
        expected = bn.eval()(conv.eval()(input)).relu()
        fused = nn.utils.fuse_conv_bn(conv, bn, "relu")
        with place.use():
            torch.testing.assert_close(fused(input), expected)
    assert fused.weight.stride() == conv.weight.stride()
    assert not fused.training


IMAGE = torch.ones(2, 4, 5, 6)
WEIGHT = torch.ones(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.conv2d_act(IMAGE, WEIGHT, groups=2, activation="gelu"), ValueError, "conv2d_act: unknown activation 'gelu'; one of none, relu"),
        (lambda: nn.Conv2dAct(4, 6, 3, activation="gelu"), ValueError, "Conv2dAct: unknown activation 'gelu'; one of none, relu"),
        (lambda: F.conv2d(IMAGE[0, 0], WEIGHT), ValueError, "conv2d: input must be [N, C, H, W] or [C, H, W], got shape (5, 6)"),
        (lambda: F.conv2d(IMAGE, WEIGHT[0]), ValueError, "conv2d: weight must have 4 dimensions, got shape (2, 3, 3)"),
        (lambda: F.conv2d(IMAGE, WEIGHT), ValueError, "conv2d: input has 4 channels, but weight of shape (6, 2, 3, 3) with groups=1 takes 2, and its first size must be a multiple of groups"),
        (lambda: F.conv2d(IMAGE, WEIGHT, groups=0), ValueError, "conv2d: groups must be a positive int, got 0"),
        (lambda: F.conv2d(IMAGE[..., :0], WEIGHT, groups=2), ValueError, "conv2d: only the batch may be empty, got input (2, 4, 5, 0), weight (6, 2, 3, 3)"),
        (lambda: F.conv2d(IMAGE, WEIGHT, torch.ones(5), groups=2), ValueError, "conv2d: bias must have shape (6,), got (5,)"),
        (lambda: F.conv2d(IMAGE.int(), WEIGHT.int(), groups=2), TypeError, "conv2d: input must be floating, got torch.int32"),
        (lambda: F.conv2d(IMAGE, WEIGHT.half(), groups=2), TypeError, "conv2d: weight has dtype torch.float16, input has torch.float32"),
        (lambda: F.conv2d(IMAGE, WEIGHT.to("meta"), groups=2), ValueError, "conv2d: weight is on meta, input on cpu"),
        (lambda: F.conv2d(IMAGE, WEIGHT, stride=0, groups=2), ValueError, "conv2d: stride must be at least 1, got (0, 0)"),
        (lambda: F.conv2d(IMAGE, WEIGHT, stride=(1, 2, 3), groups=2), ValueError, "conv2d: stride must be an int or a tuple of two, got (1, 2, 3)"),
        (lambda: F.conv2d(IMAGE, WEIGHT, padding=-1, groups=2), ValueError, "conv2d: padding must be at least 0, got (-1, -1)"),
        (lambda: F.conv2d(IMAGE, WEIGHT, padding="full", groups=2), ValueError, "conv2d: padding must be 'same', 'valid' or numbers, got 'full'"),
        (lambda: F.conv2d(IMAGE, WEIGHT, stride=2, padding="same", groups=2), ValueError, "conv2d: padding='same' needs stride 1, got (2, 2)"),
        (lambda: F.conv2d(IMAGE, WEIGHT, dilation=(3, 2), groups=2), ValueError, "conv2d: a kernel of 7 pixels does not fit into 5 with padding 0"),
        (lambda: nn.utils.fuse_conv_bn(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)), ValueError, "fuse_conv_bn: folding holds at inference only: call eval() on both modules first"),
        (lambda: nn.utils.fuse_conv_bn(torch.nn.Conv2d(1, 2, 3).eval(), torch.nn.BatchNorm2d(3).eval()), ValueError, "fuse_conv_bn: 2 channels leave conv, bn takes 3"),
        (lambda: nn.utils.fuse_conv_bn(torch.nn.Conv2d(1, 2, 3).eval(), torch.nn.BatchNorm2d(2, track_running_stats=False).eval()), ValueError, "fuse_conv_bn: the batch norm keeps no running statistics"),
        (lambda: nn.utils.fuse_conv_bn(torch.nn.Linear(1, 2), torch.nn.BatchNorm2d(2)), TypeError, "fuse_conv_bn: expected a Conv2d and a BatchNorm2d, got Linear and BatchNorm2d"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_leaves_what_pytorch_does_faster_to_it_and_says_so(dtype):
    input, weight, bias, grad_output = make_inputs(CPU, (2, 4, 9, 8), 4, (3, 3), {"groups": 4}, dtype)
    (decision,) = bigkern.explain(bigkern.conv2d_act, input, weight, bias, groups=4)
    assert decision.chosen == "torch"
    assert "oneDNN" in decision.reasons["cpu"]
    ours = with_gradients(lambda *tensors: bigkern.conv2d_act(*tensors, groups=4), input, weight, bias, grad_output)
    plain = lambda *tensors: torch.nn.functional.conv2d(*tensors, groups=4).relu()  # noqa: E731
    theirs = with_gradients(plain, input, weight, bias, grad_output)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for other, channels, ours in ((torch.float16, 1, True), (torch.float64, 1, False), (torch.float64, 2, True)):
        tensors = make_inputs(CPU, (2, channels, 9, 8), 4, (3, 3), {}, other)[:2]
        assert (bigkern.explain(bigkern.conv2d, *tensors)[0].chosen == "cpu") == ours


def test_auto_keeps_the_gradients_that_onednn_has_no_kernel_for():
    input, weight, _, grad_output = make_inputs(CPU, (2, 4, 9, 8), 4, (3, 3), {"groups": 4, "stride": 2}, torch.float32)
    arguments = (grad_output, input, weight, 2, 2, 0, 0, 1, 1, 4)
    for stride, faster in ((2, None), (1, "oneDNN")):
        reason = conv2d_backward.torch_is_faster(
            grad_output, input, weight, stride, stride, *arguments[5:], True, True, False
        )
        assert reason is None if faster is None else faster in reason
    weight.requires_grad_()
    for stride, is_pytorchs in ((2, False), (1, True)):
        output = bigkern.conv2d(input, weight, None, stride, groups=4)
        assert (type(output.grad_fn).__name__ == "ConvolutionBackward0") == is_pytorchs
        torch.testing.assert_close(output, torch.nn.functional.conv2d(input, weight, None, stride, groups=4))


def test_kernels_are_named_by_explain():
    with bigkern.use_backend("cpu"):
        decisions = bigkern.explain(bigkern.conv2d_act, IMAGE, WEIGHT, groups=2)
    assert [d.kernel for d in decisions] == [conv2d_forward.name] == ["conv2d_forward"]
    assert conv2d_backward.name == "conv2d_backward"
