import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import bigkern
import bigkern.functional as F
from bigkern import nn
from bigkern.ops.linear_act import ACTIVATIONS, NEEDS_PRE_ACTIVATION, linear_act_backward, linear_act_forward
from bigkern.reference import linear_act as reference
from tests.support import Place, assert_within_policy, to_oracle

CPU = Place("cpu", "cpu")
NAMES = ("output", "grad_input", "grad_weight", "grad_bias")
# M, N, K: ones, primes, one off a tile, and each of them empty.
SIZES = [
    (1, 1, 1),
    (7, 33, 65),
    (65, 7, 130),
    (33, 130, 1),
    (130, 65, 33),
    (2, 64, 48),
    (5, 0, 3),
    (0, 5, 3),
    (4, 3, 0),
]


def make_inputs(place, M, N, K, dtype, bias=True, seed=0):
    """(input, weight, bias, grad_output), scaled so that pre-activations are about 1."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = (randn(M, K) / max(K, 1) ** 0.5, randn(N, K), randn(N) if bias else None, randn(M, N))
    return [None if t is None else t.to(place.device, dtype) for t in tensors]


def with_gradients(function, input, weight, bias, grad_output):
    """[output, grad_input, grad_weight, grad_bias or nothing] of function(input, weight, bias)."""
    leaves = [t.detach().requires_grad_() for t in (input, weight, bias) if t is not None]
    output = function(*leaves, *([None] if bias is None else []))
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def compose(activation):
    return lambda x, w, b: ACTIVATIONS[activation](torch.nn.functional.linear(x, w, b))


def fused(activation):
    return lambda x, w, b: bigkern.linear_act(x, w, b, activation)


def oracle_of(input, weight, bias, grad_output, activation):
    # Where the dtype is float64 itself, the truth needs more digits.
    wide = np.longdouble if input.dtype == torch.float64 else np.float64
    x, w, b, g = (None if t is None else to_oracle(t).astype(wide) for t in (input, weight, bias, grad_output))
    output, z = reference.linear_act_forward(x, w, b, activation, True)
    saved = z if activation in NEEDS_PRE_ACTIVATION else output
    return [output, *reference.linear_act_backward(g, x, w, saved, activation, True, True, b is not None)]


def check(place, input, weight, bias, grad_output, activation):
    """bigkern's output and gradients keep the numerical policy."""
    before = [None if t is None else t.clone() for t in (input, weight, bias, grad_output)]
    with place.use():
        actual = with_gradients(fused(activation), input, weight, bias, grad_output)
    for tensor, copy in zip((input, weight, bias, grad_output), before, strict=True):
        assert tensor is None or torch.equal(tensor, copy)
    torch_results = with_gradients(compose(activation), input, weight, bias, grad_output)
    oracle = oracle_of(input, weight, bias, grad_output, activation)
    for name, got, expected, torch_result in zip(NAMES, actual, oracle, torch_results, strict=False):
        assert got.dtype == input.dtype
        assert_within_policy(got, expected, torch_result, what=f"{name} {activation} {tuple(input.shape)}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("M", "N", "K"), SIZES)
def test_matches_oracle(place, M, N, K, activation):
    for dtype in place.dtypes:
        check(place, *make_inputs(place, M, N, K, dtype, seed=1), activation)


def test_more_than_one_block_in_every_direction(place):
    if place.slow:
        pytest.skip("interpreted: the blocks of this backend are small enough for the sizes above")
    for dtype in place.dtypes:
        check(place, *make_inputs(place, 120, 270, 531, dtype), "gelu")


@given(
    M=st.integers(1, 40), N=st.integers(1, 70), K=st.integers(1, 80), seed=st.integers(0, 99), bias=st.booleans(),
    activation=st.sampled_from(["none", "relu", "tanh"]),
)  # fmt: skip
def test_any_shape(place, M, N, K, seed, bias, activation):
    check(place, *make_inputs(place, M, N, K, torch.float32, bias, seed), activation)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: t.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
    "padded rows": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "misaligned": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "expanded rows": lambda t: t[:1].expand_as(t),
    "expanded columns": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(place, layout):
    arrange = LAYOUTS[layout]
    for dtype in place.dtypes:
        for M in (3, 20):
            input, weight, bias, grad_output = make_inputs(place, M, 37, 29, dtype)
            bias = bias.repeat_interleave(2)[::2]
            for activation in ("none", "silu"):
                if place.slow and (activation == "none") == (dtype == torch.float16):
                    continue  # "silu" in float16, "none" in the others
                check(place, arrange(input), weight, bias, grad_output, activation)
                check(place, input, arrange(weight), bias, grad_output, activation)
                check(place, arrange(input), arrange(weight), bias, arrange(grad_output), activation)


def test_gradient_of_a_sum(place):
    # Its grad_output is one number with strides of 0.
    input, weight, bias, _ = make_inputs(place, 9, 18, 5, torch.float32)
    check(place, input, weight, bias, torch.ones((), device=place.device).expand(9, 18), "sigmoid")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_and_small_arguments(place, activation):
    z = [sign * size for size in (0, 1e-30, 1e-5, 0.3, 5, 9.5, 20, 90, 500, 6e4) for sign in (1.0, -1.0)]
    for dtype in place.dtypes:
        column = torch.tensor(z, dtype=dtype, device=place.device)[:, None]
        one = torch.ones(1, 1, dtype=dtype, device=place.device)
        results = []
        for function in (fused(activation), compose(activation)):
            leaf = column.clone().requires_grad_()
            with place.use():
                output = function(leaf, one, None)
                (gradient,) = torch.autograd.grad(output.sum(), leaf)
            results.append((output, gradient))
        oracle = oracle_of(column, one, None, torch.ones_like(column), activation)
        assert_within_policy(results[0][1], oracle[1], results[1][1], what=f"gradient of {activation}")
        for row in range(len(z)):  # one at a time, as the tolerance is relative to the largest value
            one_of = lambda results: results[0][row : row + 1]  # noqa: B023, E731
            assert_within_policy(*map(one_of, (results[0], oracle, results[1])), what=f"{activation}({z[row]})")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_stay_in_their_row(place, activation):
    for dtype in place.dtypes:
        input, weight, bias, grad_output = make_inputs(place, 20, 33, 17, dtype)
        weight[:, 3] = weight[:, 3].abs() + 0.1
        input[4, 5], input[7, 3], input[9, 3] = float("nan"), float("inf"), float("-inf")
        with place.use():
            output, grad_input, grad_weight, _ = with_gradients(fused(activation), input, weight, bias, grad_output)
            clean = bigkern.linear_act(input.nan_to_num(0, 0, 0), weight, bias, activation)
        oracle = oracle_of(input, weight, bias, grad_output, activation)
        if place.backend == "torch":  # whose float32 gelu(inf) is NaN, where its float64 one is inf
            oracle = with_gradients(compose(activation), input, weight, bias, grad_output)
        assert output[4].isnan().all()
        others = [i for i in range(20) if i not in (4, 7, 9)]
        assert torch.equal(output[others], clean[others])
        for got, expected in ((output, oracle[0]), (grad_input, oracle[1]), (grad_weight, oracle[2])):
            got, expected = to_oracle(got), to_oracle(expected)
            assert np.array_equal(np.isnan(got), np.isnan(expected))
            assert np.array_equal(np.isinf(got), np.isinf(expected))
        assert grad_weight[:, 5].isnan().all()


def test_infinite_gradient_of_a_dead_unit_is_zero(place):
    input = torch.tensor([[-1.0], [2.0]], device=place.device)
    weight = torch.ones(1, 1, device=place.device)
    grad_output = torch.tensor([[float("inf")], [3.0]], device=place.device)
    with place.use():
        _, grad_input, grad_weight, grad_bias = with_gradients(
            bigkern.linear_act, input, weight, torch.zeros(1, device=place.device), grad_output
        )
    assert grad_input.flatten().tolist() == [0, 3]
    assert grad_weight.item() == 6
    assert grad_bias.item() == 3


def test_only_the_asked_gradients(place):
    input, weight, bias, grad_output = make_inputs(place, 6, 5, 4, torch.float32)
    oracle = oracle_of(input, weight, bias, grad_output, "gelu")[1:]
    for wanted in range(3):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((input, weight, bias))]
        with place.use():
            bigkern.linear_act(*leaves, "gelu").backward(grad_output)
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
        assert_within_policy(leaves[wanted].grad, oracle[wanted], None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_derivatives(place, activation):
    if torch.float64 not in place.dtypes:
        pytest.skip("finite differences need float64")
    leaves = [t.requires_grad_() for t in make_inputs(place, 4, 3, 5, torch.float64, seed=3)[:3]]
    with place.use():
        assert torch.autograd.gradcheck(fused(activation), leaves)
        assert torch.autograd.gradgradcheck(fused(activation), leaves)
        both = lambda x, w, b: linear_act_forward(x, w, b, activation, True)  # noqa: E731
        assert torch.autograd.gradcheck(both, leaves)


def test_gradient_without_saved_pre_activation_recomputes_it(place):
    input, weight, bias, grad_output = make_inputs(place, 6, 5, 4, torch.float32)
    kept, recomputed = (
        lambda x, w, b, save=save: linear_act_forward(x, w, b, "silu", save)[0] for save in (True, False)
    )
    with place.use():
        expected = with_gradients(kept, input, weight, bias, grad_output)
        actual = with_gradients(recomputed, input, weight, bias, grad_output)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_gradient_by_finite_differences(activation):
    rng = np.random.default_rng(0)
    x, w, b, g = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=(4, 5))
    output, z = reference.linear_act_forward(x, w, b, activation, True)
    saved = z if activation in NEEDS_PRE_ACTIVATION else output
    gradients = reference.linear_act_backward(g, x, w, saved, activation, True, True, True)
    loss = lambda: (reference.linear_act_forward(x, w, b, activation, False)[0] * g).sum()  # noqa: E731
    for parameter, gradient in zip((x, w, b), gradients, strict=True):
        for index in np.ndindex(parameter.shape):
            original = parameter[index]
            parameter[index] = original + 1e-6
            above = loss()
            parameter[index] = original - 1e-6
            slope = (above - loss()) / 2e-6
            parameter[index] = original
            assert abs(slope - gradient[index]) < 1e-7


def test_result_does_not_depend_on_the_number_of_threads():
    tensors = make_inputs(CPU, 300, 500, 600, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with bigkern.use_backend("cpu"):
                results.append(with_gradients(fused("gelu"), *tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class RecordCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.saves = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.bigkern.linear_act_forward.default:
            self.saves.append(args[4])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pre_activation_is_saved_only_for_a_gradient_that_needs_it(activation):
    x, w = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    with RecordCalls() as record:
        bigkern.linear_act(x, w, None, activation)
        bigkern.linear_act(x, w.detach(), None, activation)
        with torch.no_grad():
            bigkern.linear_act(x, w, None, activation)
    assert record.saves == [activation in ("gelu", "gelu_tanh", "silu"), False, False]


def test_leading_dimensions(place):
    input, weight, bias, _ = make_inputs(place, 24, 5, 7, torch.float32)
    with place.use():
        flat = bigkern.linear_act(input, weight, bias, "tanh")
        for view in (lambda t: t.view(2, 3, 4, -1), lambda t: t.view(2, 12, -1).transpose(0, 1), lambda t: t[0]):
            result = bigkern.linear_act(view(input), weight, bias, "tanh")
            torch.testing.assert_close(result, view(flat))
        assert bigkern.linear_act(input.view(2, 12, 7)[:, :0], weight, bias).shape == (2, 0, 5)


def test_registration_is_complete():
    input, weight, bias, grad_output = make_inputs(CPU, 4, 3, 5, torch.float32)
    leaves = [t.requires_grad_() for t in (input, weight, bias)]
    for activation in ACTIVATIONS:
        for save in (True, False):
            opcheck(torch.ops.bigkern.linear_act_forward.default, (*leaves, activation, save))
        saved = torch.empty(0) if activation == "none" else torch.rand(4, 3, requires_grad=True)
        grad = grad_output.clone().requires_grad_()
        for needs in ((True, True, True), (True, False, False), (False, True, True)):
            opcheck(torch.ops.bigkern.linear_act_backward.default, (grad, input, weight, saved, activation, *needs))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@bigkern.use_backend("cpu")  # on auto, calls this small are PyTorch's own in eager mode
def test_compiles_with_dynamic_shapes(activation):
    def function(x, w, b):
        return F.linear(bigkern.linear_act(x * 2, w, b, activation), w.t()).sum(0)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for M in (3, 6):
        leaves = [t.requires_grad_() for t in make_inputs(CPU, M, 5, 4, torch.float32)[:3]]
        results = [f(*leaves) for f in (compiled, function)]
        gradients = [torch.autograd.grad(result.square().sum(), leaves) for result in results]
        assert torch.equal(*results)
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@bigkern.use_backend("cpu")
def test_autocast_runs_in_lower_precision(dtype):
    input, weight, bias, _ = make_inputs(CPU, 6, 5, 4, torch.float32)
    leaves = [t.requires_grad_() for t in (input, weight.to(dtype), bias)]
    with torch.autocast("cpu", dtype):
        output = bigkern.linear_act(*leaves, "gelu")
        assert nn.Linear(4, 2)(input).dtype == dtype
    assert torch.equal(output, bigkern.linear_act(*(t.to(dtype) for t in leaves), "gelu"))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32, dtype, torch.float32]


def test_linear_is_torch_linear(place):
    input, weight, bias, _ = make_inputs(place, 6, 5, 4, torch.float32)
    with place.use():
        for w, b in ((weight, bias), (weight, None), (weight[0], None)):
            expected = torch.nn.functional.linear(input, w, b)
            actual = F.linear(input, w, b)
            assert actual.shape == expected.shape
            torch.testing.assert_close(actual, expected)
    assert F.linear_act is bigkern.linear_act.__wrapped__  # which takes arrays of other libraries, too


def test_linear_module_is_a_drop_in(place):
    torch.manual_seed(3)
    theirs = torch.nn.Linear(7, 5, dtype=torch.float32, device=place.device)
    torch.manual_seed(3)
    ours = nn.Linear(7, 5, dtype=torch.float32, device=place.device)
    for (name, expected), (ours_name, actual) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert name == ours_name
        assert torch.equal(actual, expected)
    input = torch.randn(2, 3, 7, device=place.device)
    with place.use():
        torch.testing.assert_close(ours(input), theirs(input))
    assert nn.Linear(7, 5, bias=False).bias is None
    assert repr(ours) == repr(theirs)


def test_linear_act_module(place):
    module = nn.LinearAct(7, 5, activation="silu", device=place.device)
    input = torch.randn(2, 3, 7, device=place.device)
    expected = torch.nn.functional.silu(torch.nn.functional.linear(input, module.weight, module.bias))
    with place.use():
        torch.testing.assert_close(module(input), expected)
    torch.nn.Linear(7, 5).load_state_dict(module.state_dict())
    assert repr(module) == "LinearAct(in_features=7, out_features=5, bias=True, activation='silu')"
    assert nn.LinearAct(7, 5, False).bias is None
    assert nn.LinearAct(7, 5).activation == "relu"


ONES = torch.ones(2, 4)
WEIGHT = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.linear_act(ONES, WEIGHT, None, "swish"), ValueError, "linear_act: unknown activation 'swish'; one of none, relu, gelu, gelu_tanh, silu, sigmoid, tanh"),
        (lambda: nn.LinearAct(3, 4, activation="swish"), ValueError, "LinearAct: unknown activation 'swish'; one of none, relu, gelu, gelu_tanh, silu, sigmoid, tanh"),
        (lambda: bigkern.linear_act(ONES.int(), WEIGHT.int()), TypeError, "linear_act: input must be floating, got torch.int32"),
        (lambda: bigkern.linear_act(ONES, WEIGHT.int()), TypeError, "linear_act: weight must be floating, got torch.int32"),
        (lambda: bigkern.linear_act(ONES, WEIGHT.half()), TypeError, "linear_act: weight has dtype torch.float16, input has torch.float32"),
        (lambda: bigkern.linear_act(ONES, WEIGHT, torch.ones(3).double()), TypeError, "linear_act: bias has dtype torch.float64, input has torch.float32"),
        (lambda: F.linear(ONES, torch.ones(3, 5)), ValueError, "linear: input of shape (2, 4) must end in weight's in_features, 5 (weight is (3, 5))"),
        (lambda: F.linear(torch.ones(()), WEIGHT), ValueError, "linear: input of shape () must end in weight's in_features, 4 (weight is (3, 4))"),
        (lambda: F.linear(ONES, torch.ones(3, 4, 5)), ValueError, "linear: weight must be [out_features, in_features], got shape (3, 4, 5)"),
        (lambda: F.linear(ONES, WEIGHT, torch.ones(4)), ValueError, "linear: bias must have shape (3,), got (4,)"),
        (lambda: F.linear(ONES, WEIGHT.to("meta")), ValueError, "linear: weight is on meta, input on cpu"),
        (lambda: F.linear(ONES, WEIGHT, torch.ones(3, device="meta")), ValueError, "linear: bias is on meta, input on cpu"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_autocast_still_refuses_to_mix_float64():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"weight has dtype torch\.float64"):
        bigkern.linear_act(ONES, WEIGHT.double())


def test_kernels_are_named_by_explain():
    with bigkern.use_backend("cpu"):
        decisions = bigkern.explain(bigkern.linear_act, ONES, WEIGHT)
    assert [d.kernel for d in decisions] == ["linear_act_forward"]
    assert linear_act_backward.name == "linear_act_backward"
