import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
import bigkern.nn
from bigkern.ops.int8_linear import MAX_DEPTH
from bigkern.ops.linear_act import ACTIVATIONS, NEEDS_PRE_ACTIVATION
from bigkern.reference import int8_linear as reference
from tests.support import FEW, PLACES, assert_within_policy, to_oracle

SHAPES = [
    (1, 1, 1), (1, 3, 7), (2, 7, 3), (3, 16, 64), (4, 33, 65), (7, 65, 33), (8, 5, 129), (9, 33, 129), (16, 16, 64),
    (17, 31, 4), (33, 65, 130), (65, 7, 33), (129, 33, 63), (5, 4, 0), (20, 4, 0),
]  # fmt: skip
SMALL_SHAPES = [(1, 3, 7), (4, 33, 65), (17, 31, 36), (33, 20, 70), (3, 4, 0)]


def problem(M, N, K, dtype=torch.float32, device="cpu", bias=True):
    """input, qweight (with -128 among its values), weight_scale and bias."""
    input = torch.randn(M, K, device=device).to(dtype)
    qweight = torch.randint(-128, 128, (N, K), dtype=torch.int8, device=device)
    scale_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weight_scale = (torch.rand(N, device=device) * 0.02 + 0.001).to(scale_dtype)
    return input, qweight, weight_scale, torch.randn(N, device=device).to(dtype) if bias else None


def check_forward(output, input, qweight, weight_scale, bias, activation):
    """Within a few ulp of the oracle; where x / scale is a tie up to float32's rounding, both neighbours are right."""
    x, q, w_scale, b = (to_oracle(t) for t in (input, qweight, weight_scale, bias))
    oracle, pre = reference.int8_linear_forward(x, q, w_scale, b, activation, True)
    row_scale = np.abs(x).max(1, initial=0) / 127
    quotient = x / np.where(row_scale > 0, row_scale, 1)[:, None]
    near_tie = np.abs(np.abs(quotient - np.trunc(quotient)) - 0.5) < 1e-4
    other_neighbour = (near_tie @ np.abs(q.astype(np.float64)).T) * row_scale[:, None] * np.abs(w_scale)
    magnitude = np.abs(pre).max(initial=0) + (np.abs(b).max(initial=0) if b is not None else 0)
    # No activation is steeper than 1.13.
    allowed = 1.13 * other_neighbour + FEW * torch.finfo(output.dtype).eps * magnitude
    assert output.dtype == input.dtype
    assert output.shape == oracle.shape
    error = np.abs(to_oracle(output) - oracle)
    assert (error <= allowed).all(), (
        f"error {error.max():.3g}, allowed {np.broadcast_to(allowed, error.shape).min():.3g}"
    )


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_multiplied_exactly(place, shape):
    """With 127 in each row its scale is 1 and nothing is rounded: the output is the integer product."""
    M, N, K = shape
    input = torch.randint(-127, 128, (M, K)).double()
    qweight = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    if K:
        input[:, 0] = 127
        qweight[0] = -128  # the extreme sum: every product has the same sign and the largest size
        input[-1] = 127
    expected = input @ qweight.double().t()
    assert expected.abs().max() < 2**24 if expected.numel() else True
    for dtype in place.dtypes:
        if dtype in (torch.float16, torch.bfloat16):
            continue  # cannot hold the product; test_matches_oracle covers them
        with place.use():
            output = bigkern.int8_linear(
                input.to(place.device, dtype), qweight.to(place.device), torch.ones((), device=place.device)
            )
        assert torch.equal(output.cpu().double(), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_matches_oracle(place, shape, activation):
    for dtype in place.dtypes:
        for with_bias in (True, False):
            arguments = problem(*shape, dtype, place.device, with_bias)
            before = [None if t is None else t.clone() for t in arguments]
            with place.use():
                output = bigkern.int8_linear(*arguments, activation)
            check_forward(output, *arguments, activation)
            assert all(t is None or torch.equal(t, b) for t, b in zip(arguments, before, strict=True))


@given(
    M=st.integers(1, 40), N=st.integers(1, 40), K=st.integers(0, 200), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), activation=st.sampled_from(list(ACTIVATIONS)),
)  # fmt: skip
def test_any_size(place, M, N, K, seed, dtype, activation):
    torch.manual_seed(seed)
    arguments = problem(M, N, K, dtype, place.device)
    with place.use():
        output = bigkern.int8_linear(*arguments, activation)
    check_forward(output, *arguments, activation)


@pytest.mark.parametrize("M", [2, 40])
def test_more_rows_than_a_cache_chunk(M):
    """Sizes at which the CPU kernel goes round its outer loops more than once."""
    for shape in ((M, 50, 9000), (40 * M, 20, 3000)):
        arguments = problem(*shape)
        for place in PLACES:
            if place.backend == "cpu":
                with place.use():
                    output = bigkern.int8_linear(*arguments)
                check_forward(output, *arguments, "none")


@pytest.mark.parametrize("M", [1, 20])
def test_largest_depth_does_not_overflow(place, M):
    if place.slow:
        pytest.skip("132104 deep is too long for the interpreter; the sum is the same instruction at any depth")
    input = torch.full((M, MAX_DEPTH), 127.0, device=place.device)
    qweight = torch.full((2, MAX_DEPTH), -128, dtype=torch.int8, device=place.device)
    qweight[1] = 127
    with place.use():
        output = bigkern.int8_linear(input, qweight, torch.ones((), device=place.device))
    expected = torch.tensor([-128.0 * 127 * MAX_DEPTH, 127.0 * 127 * MAX_DEPTH])
    assert torch.equal(output.cpu(), expected.expand(M, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "tanh"])
def test_non_finite_row_gives_nan_and_leaves_others_alone(place, activation, bad):
    for M in (3, 18):
        input, qweight, weight_scale, bias = problem(M, 20, 70, device=place.device)
        clean = input.clone()
        for position in (0, 69):
            input[1] = clean[1]
            input[1, position] = bad
            with place.use():
                output = bigkern.int8_linear(input, qweight, weight_scale, bias, activation)
                expected = bigkern.int8_linear(clean, qweight, weight_scale, bias, activation)
            assert output[1].isnan().all()
            others = [row for row in range(M) if row != 1]
            assert torch.equal(output[others], expected[others])


def test_row_of_huge_values_does_not_overflow(place):
    input = torch.tensor([[3e38, -1e38, 0.0]], device=place.device)
    qweight = torch.tensor([[127, 127, 5]], dtype=torch.int8, device=place.device)
    with place.use():
        output = bigkern.int8_linear(input, qweight, torch.tensor([1e-3], device=place.device))
    assert output.item() == pytest.approx(3e38 / 127 * 1e-3 * 127 * (127 - 42), rel=1e-5)


def test_any_strides(place):
    for M in (3, 20):
        input, qweight, weight_scale, bias = problem(M, 18, 36, device=place.device)
        with place.use():
            expected = bigkern.int8_linear(input, qweight, weight_scale, bias, "relu")
        wide_input = torch.randn(2 * M, 3 * 36, device=place.device)
        wide_input[::2, 1::3] = input
        wide_weight = torch.zeros(36, 40, dtype=torch.int8, device=place.device)
        wide_weight[:, 1:37:2] = qweight.t()
        inputs = (input.t().contiguous().t(), wide_input[::2, 1::3])
        qweights = (qweight.t().contiguous().t(), wide_weight[:, 1:37:2].t())
        scales = torch.stack([weight_scale, weight_scale], 1)[:, 0]
        biases = torch.stack([bias, bias], 1)[:, 0]
        for x, q in zip(inputs, qweights, strict=True):
            with place.use():
                assert torch.equal(bigkern.int8_linear(x, qweight, weight_scale, bias, "relu"), expected)
                assert torch.equal(bigkern.int8_linear(x, q, scales, biases, "relu"), expected)
        row = torch.randn(1, 36, device=place.device).expand(M, 36)
        with place.use():
            same = bigkern.int8_linear(row, qweight, weight_scale, bias)
            assert torch.equal(same, bigkern.int8_linear(row.contiguous(), qweight, weight_scale, bias))


def test_leading_dimensions_and_one_scale_for_all(place):
    input, qweight, _, bias = problem(6, 5, 8, device=place.device)
    scale = torch.tensor(0.01, device=place.device)
    with place.use():
        expected = bigkern.int8_linear(input, qweight, scale.expand(5), bias)
        assert torch.equal(bigkern.int8_linear(input.view(2, 3, 8), qweight, scale, bias), expected.view(2, 3, 5))
        assert torch.equal(bigkern.int8_linear(input[0], qweight, scale, bias), expected[0])


@pytest.mark.parametrize(("leading", "N"), [((0,), 4), ((2, 0), 4), ((3,), 0), ((0,), 0)])
def test_empty_output(place, leading, N):
    input = torch.empty(*leading, 6, device=place.device)
    qweight = torch.ones(N, 6, dtype=torch.int8, device=place.device)
    with place.use():
        output = bigkern.int8_linear(input, qweight, torch.ones(N, device=place.device), activation="gelu")
    assert output.shape == (*leading, N)


# ---- gradients -------------------------------------------------------------------------------------------------------


def straight_through(input, qweight, weight_scale, bias, activation):
    """The layer in PyTorch's operators, its input rounded with a slope of 1."""
    qinput, row_scale, _ = bigkern.quantize(input.detach(), axis=0)
    rounded = input + ((qinput * row_scale[:, None]).to(input.dtype) - input.detach())
    weight = (qweight * weight_scale[:, None]).to(input.dtype)
    return ACTIVATIONS[activation](torch.nn.functional.linear(rounded, weight, bias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 3, 7), (17, 31, 36), (3, 4, 0)], ids=str)
def test_gradients_match_oracle(place, shape, activation):
    for dtype in place.dtypes:
        input, qweight, weight_scale, bias = problem(*shape, dtype, place.device)
        leaves = [t.requires_grad_() for t in (input, weight_scale, bias)]
        with place.use():
            output = bigkern.int8_linear(input, qweight, weight_scale, bias, activation)
            grad_output = torch.randn_like(output)
            grads = torch.autograd.grad(output, leaves, grad_output)
        x, q, w_scale, b, g = (to_oracle(t) for t in (input, qweight, weight_scale, bias, grad_output))
        saved, pre = reference.int8_linear_forward(x, q, w_scale, b, activation, True)
        oracle = reference.int8_linear_backward(
            g, x, q, w_scale, pre if activation in NEEDS_PRE_ACTIVATION else saved, activation
        )
        # Where relu's kink lies within rounding of 0, either slope is right: this problem has no such element.
        assert activation != "relu" or np.abs(pre).min(initial=1) > 1e-3
        torch_grads = torch.autograd.grad(
            straight_through(input, qweight, weight_scale, bias, activation), leaves, grad_output
        )
        names = ("input", "weight_scale", "bias")
        for name, grad, expected, theirs in zip(names, grads, oracle, torch_grads, strict=True):
            assert grad.dtype == (weight_scale.dtype if name == "weight_scale" else dtype)
            assert_within_policy(grad, expected, theirs, dtype, what=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_are_those_of_the_straight_through_layer(activation):
    tensors = problem(5, 6, 9, torch.float64)
    input, qweight, weight_scale, bias = (t.requires_grad_() if t.is_floating_point() else t for t in tensors)
    leaves = (input, weight_scale, bias)
    grad_output = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    directions = [torch.randn_like(t) for t in leaves]
    results = []
    for layer in (bigkern.int8_linear, straight_through):
        output = layer(input, qweight, weight_scale, bias, activation)
        first = torch.autograd.grad(output, leaves, grad_output, create_graph=True)
        second = torch.autograd.grad(first, (*leaves, grad_output), directions, allow_unused=True)
        results.append([torch.zeros(1) if t is None else t for t in (*first, *second)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-9, atol=1e-11)


def test_frozen_tensors_get_no_gradient(place):
    input, qweight, weight_scale, bias = problem(4, 5, 6, device=place.device)
    bias.requires_grad_()
    with place.use():
        bigkern.int8_linear(input, qweight, weight_scale, bias, "gelu").sum().backward()
    assert bias.grad is not None
    assert input.grad is None
    assert weight_scale.grad is None


# ---- as an operator --------------------------------------------------------------------------------------------------


def test_registration_is_complete():
    for activation, save in (("none", False), ("relu", False), ("gelu", True), ("silu", False)):
        input, qweight, weight_scale, bias = problem(3, 4, 6)
        input.requires_grad_()
        arguments = (input, qweight, weight_scale, bias, activation, save)
        opcheck(torch.ops.bigkern.int8_linear_forward.default, arguments)


def test_compiles_with_dynamic_shapes():
    _, qweight, weight_scale, bias = problem(1, 5, 8)

    def layer(x):
        return bigkern.int8_linear(x * 2, qweight, weight_scale, bias, "gelu") + 1

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (2, 5, 8)):
        x = torch.randn(shape, requires_grad=True)
        assert torch.equal(compiled(x), layer(x))
        expected = torch.autograd.grad(layer(x).sum(), x)[0]
        assert torch.equal(torch.autograd.grad(compiled(x).sum(), x)[0], expected)


def test_autocast_lowers_input_and_bias_but_not_the_scale(place):
    input, qweight, weight_scale, bias = problem(4, 5, 6, device=place.device)
    with torch.autocast(place.device, dtype=torch.bfloat16), place.use():
        output = bigkern.int8_linear(input, qweight, weight_scale, bias)
        assert torch.equal(bigkern.int8_linear(input.bfloat16(), qweight, weight_scale, bias), output)
    check_forward(output, input.bfloat16(), qweight, weight_scale, bias.bfloat16(), "none")


def test_compiles_under_autocast():
    input, qweight, weight_scale, bias = problem(4, 5, 8)

    def layer(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return bigkern.int8_linear(x, qweight, weight_scale, bias)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input), layer(input))
    assert compiled(input).dtype == torch.bfloat16


F32, I8 = torch.float32, torch.int8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3, dtype=I8), torch.ones(4, 3, dtype=I8), torch.ones(4)), TypeError, "int8_linear: input must be floating, got torch.int8"),
        ((torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)), TypeError, "int8_linear: qweight must be int8, got torch.float32"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8), torch.ones(4, dtype=I8)), TypeError, "int8_linear: weight_scale must be floating, got torch.int8"),
        ((torch.ones(2, 3), torch.ones(3, dtype=I8), torch.ones(3)), ValueError, "int8_linear: qweight must be [out_features, in_features], got shape (3,)"),
        ((torch.ones(2, 5), torch.ones(4, 3, dtype=I8), torch.ones(4)), ValueError, "int8_linear: input of shape (2, 5) must end in qweight's in_features, 3 (qweight is (4, 3))"),
        ((torch.ones(()), torch.ones(4, 3, dtype=I8), torch.ones(4)), ValueError, "int8_linear: input of shape () must end in qweight's in_features, 3 (qweight is (4, 3))"),
        ((torch.ones(1, 132105), torch.ones(1, 132105, dtype=I8), torch.ones(1)), ValueError, "int8_linear: in_features 132105 is above 132104, where an int32 sum could overflow"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8), torch.ones(3)), ValueError, "int8_linear: weight_scale must have shape (4,) or (), got (3,)"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8), torch.ones(4), torch.ones(3)), ValueError, "int8_linear: bias must have shape (4,), got (3,)"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8), torch.ones(4), torch.ones(4).half()), TypeError, "int8_linear: bias has dtype torch.float16, input has torch.float32"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8, device="meta"), torch.ones(4)), ValueError, "int8_linear: qweight is on meta, input on cpu"),
        ((torch.ones(2, 3), torch.ones(4, 3, dtype=I8), torch.ones(4), None, "swish"), ValueError, "int8_linear: unknown activation 'swish'; one of none, relu, gelu, gelu_tanh, silu, sigmoid, tanh"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error) as caught:
        bigkern.int8_linear(*arguments)
    assert str(caught.value) == message


# ---- QuantizedLinear -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
def test_quantized_linear_is_close_to_its_float_layer(place, with_bias):
    linear = torch.nn.Linear(96, 40, bias=with_bias).to(place.device)
    layer = bigkern.nn.QuantizedLinear.from_float(linear, activation="relu")
    input = torch.randn(7, 96, device=place.device)
    with place.use(), torch.no_grad():
        expected, output = torch.relu(linear(input)), layer(input)
    linear.requires_grad_(False)
    # Two roundings to 8 bits, half a step each, over a sum of 96 products.
    input_step = input.abs().amax(1, keepdim=True) / 127
    weight_step = linear.weight.abs().amax(1) / 127
    allowed = 0.51 * (input_step * linear.weight.abs().sum(1) + input.abs().sum(1, keepdim=True) * weight_step)
    assert ((output - expected).abs() <= allowed + 0.26 * 96 * input_step * weight_step).all()
    assert (output - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(layer.weight, linear.weight, rtol=0, atol=0.51 * weight_step.max().item())


def two_layers():
    return torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))


def test_quantized_classifier_keeps_its_accuracy():
    """Three interleaved spiral arms: a problem that needs the hidden layer."""
    torch.manual_seed(1)
    radius = torch.linspace(0.1, 1, 60).repeat(3)
    label = torch.arange(3).repeat_interleave(60)
    angle = radius * 4 + label * 2.0944 + torch.randn(180) * 0.1
    points = torch.stack([radius * angle.sin(), radius * angle.cos()], 1)
    model = two_layers()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(points), label)
        value.backward()
        return value

    optimizer.step(loss)
    accuracy = (model(points).argmax(1) == label).float().mean()
    quantized = bigkern.nn.quantize_linears(copy.deepcopy(model))
    quantized_accuracy = (quantized(points).argmax(1) == label).float().mean()
    assert accuracy > 0.95
    assert quantized_accuracy > accuracy - 0.01
    assert isinstance(quantized[0], bigkern.nn.QuantizedLinear)
    assert isinstance(quantized[2], bigkern.nn.QuantizedLinear)


def test_state_dict_copy_and_pickle_keep_the_layer():
    layer = bigkern.nn.QuantizedLinear.from_float(torch.nn.Linear(10, 6), activation="gelu")
    input = torch.randn(4, 10)
    expected = layer(input)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = bigkern.nn.QuantizedLinear(10, 6, activation="gelu")
    assert not torch.equal(loaded(input), expected)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(input), expected)
    assert list(layer.state_dict()) == ["qweight", "weight_scale", "bias"]
    assert torch.equal(copy.deepcopy(layer)(input), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(input), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_module_keeps_the_scale_precise(dtype):
    linear = torch.nn.Linear(10, 6)
    layer = bigkern.nn.QuantizedLinear.from_float(linear)
    scale = layer.weight_scale.clone()
    layer.to(dtype)
    assert torch.equal(layer.weight_scale.float(), scale)
    assert layer.bias.dtype == dtype
    output = layer(torch.randn(2, 10, dtype=dtype))
    assert output.dtype == dtype
    cast = bigkern.nn.QuantizedLinear.from_float(linear.to(dtype))
    assert cast(torch.randn(2, 10, dtype=dtype)).dtype == dtype


def test_quantize_linears_replaces_nested_shared_and_root_layers():
    class Special(torch.nn.Linear):
        pass

    shared = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"a": torch.nn.Sequential(shared, torch.nn.ReLU()), "b": shared, "c": shared})
    model["special"] = Special(4, 4)
    converted = bigkern.nn.quantize_linears(model.eval())
    assert converted is model
    assert isinstance(model["b"], bigkern.nn.QuantizedLinear)
    assert model["b"] is model["c"]
    assert model["b"] is model["a"][0]
    assert not model["b"].training
    assert type(model["special"]) is Special
    fused = bigkern.nn.quantize_linears(bigkern.nn.LinearAct(4, 4, activation="silu"))
    assert fused.activation == "silu"
    root = torch.nn.Linear(3, 2, bias=False)
    assert isinstance(bigkern.nn.quantize_linears(root), bigkern.nn.QuantizedLinear)


def test_module_errors_and_repr():
    layer = bigkern.nn.QuantizedLinear.from_float(torch.nn.Linear(3, 2, bias=False), "silu")
    assert repr(layer) == "QuantizedLinear(in_features=3, out_features=2, bias=False, activation='silu')"
    with pytest.raises(TypeError, match=r"^QuantizedLinear.from_float: expected a torch.nn.Linear, got ReLU$"):
        bigkern.nn.QuantizedLinear.from_float(torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"^QuantizedLinear: unknown activation 'swish'; one of none, relu"):
        bigkern.nn.QuantizedLinear(3, 2, activation="swish")
    hooked = two_layers()
    hooked[2].register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"^quantize_linears: layer '2' has hooks, which its replacement would not run$"
    ):
        bigkern.nn.quantize_linears(hooked)
