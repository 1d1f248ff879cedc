"""batch_norm_act on every backend: values, gradients, running statistics, layouts, and torch's own errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.batch_norm_act import batch_norm_act_backward, batch_norm_act_forward
from bigkern.reference import batch_norm_act as reference
from tests.support import LOW_PRECISION, assert_within_policy, max_error, to_oracle

NAMES = ("input", "weight", "bias", "residual")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def theirs(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation):
    """PyTorch's own, in input's dtype."""
    if input.dtype in LOW_PRECISION:
        # Its CPU kernel takes parameters of float32 or of input's dtype, all alike.
        running_mean, running_var, weight, bias = (
            None if t is None else t.to(input.dtype) for t in (running_mean, running_var, weight, bias)
        )
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    output = output if residual is None else output + residual
    return F.relu(output) if activation == "relu" else output


def oracle(tensors, running, grad_output, training, eps, activation):
    """(output, mean, var, gradients of NAMES, the sizes of the terms that cancel in the gradients of the parameters)"""
    shape = tensors["input"].shape

    def channels(t):
        return None if t is None else to_oracle(t).astype(np.longdouble).reshape(shape[0], shape[1], -1)

    def flat(t):
        return None if t is None else to_oracle(t).astype(np.longdouble)

    input, grad = channels(tensors["input"]), channels(grad_output)
    weight, bias = flat(tensors.get("weight")), flat(tensors.get("bias"))
    statistics = (None, None) if training else [flat(t) for t in running]
    call = (input, weight, bias, channels(tensors.get("residual")), *statistics, training, eps, activation)
    output, mean, var = reference.batch_norm_act_forward(*call)
    saved = output if activation == "relu" else None
    grads = reference.batch_norm_act_backward(
        grad, input, weight, bias, mean, var, saved, training, eps, *(name in tensors for name in NAMES)
    )
    rstd = 1 / np.sqrt(var + eps)[:, None]
    normalized = np.abs(input - mean[:, None]) * rstd
    scale = rstd if weight is None else rstd * np.abs(weight)[:, None]
    sizes = [np.abs(grad) * scale, (np.abs(grad) * normalized).sum((0, 2)), np.abs(grad).sum((0, 2)), None]
    return output, mean, var, dict(zip(NAMES, grads, strict=True)), dict(zip(NAMES, sizes, strict=True))


def run(function, tensors, running, grad_output, training, momentum, eps, activation):
    """(output, gradients by name, running statistics after the call)"""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    running = [None if t is None else t.clone() for t in running]
    parameters = leaves.get("weight"), leaves.get("bias")
    options = (training, momentum, eps, leaves.get("residual"), activation)
    output = function(leaves["input"], *running, *parameters, *options)
    grads = torch.autograd.grad(output, list(leaves.values()), grad_output)
    return output.detach(), dict(zip(leaves, grads, strict=True)), running


def draw(place, shape, dtype=torch.float32, names=NAMES, offset=0.0, channels_last=False):
    """({name: tensor}, running statistics, grad_output)"""
    tensors = {}
    for name in names:
        size = shape[1:2] if name in ("weight", "bias") else shape
        tensors[name] = torch.randn(size, device=place.device).to(dtype) + (offset if name == "input" else 0)
    running = [
        torch.randn(shape[1], device=place.device).to(dtype),
        torch.rand(shape[1], device=place.device).to(dtype) + 0.5,
    ]
    grad_output = torch.randn(shape, device=place.device).to(dtype)
    if channels_last:
        layout = {"memory_format": CHANNELS_LAST[len(shape)]}
        tensors = {name: t.to(**layout) if t.ndim > 1 else t for name, t in tensors.items()}
        grad_output = grad_output.to(**layout)
    return tensors, running, grad_output


def check(place, drawn, training=True, momentum=0.1, eps=1e-5, activation="none", what=""):
    """Output, gradients and running statistics within the numerical policy, and the inputs as they were."""
    tensors, running, grad_output = drawn
    before = {name: t.clone() for name, t in tensors.items()}
    with place.use():
        output, grads, updated = run(
            bigkern.batch_norm_act, tensors, running, grad_output, training, momentum, eps, activation
        )
    assert all(torch.equal(tensors[name], t) for name, t in before.items())
    their_output, their_grads, their_updated = run(
        theirs, tensors, running, grad_output, training, momentum, eps, activation
    )
    expected, mean, var, expected_grads, sizes = oracle(tensors, running, grad_output, training, eps, activation)
    shape = output.shape
    assert output.dtype == tensors["input"].dtype
    assert_within_policy(output, expected.reshape(shape), their_output, what=f"{what} output")
    for name, grad in grads.items():
        size = None if sizes[name] is None else sizes[name].reshape(grad.shape)
        assert grad.dtype == tensors[name].dtype
        assert_within_policy(
            grad,
            expected_grads[name].reshape(grad.shape),
            their_grads[name],
            what=f"{what} grad_{name}",
            magnitude=size,
        )
    if training and running[0] is not None:
        count = output.numel() // shape[1]
        for old, new, other, batch in zip(
            running, updated, their_updated, (mean, var * (count / (count - 1))), strict=True
        ):
            right = (1 - momentum) * to_oracle(old) + momentum * batch
            assert_within_policy(new, right, other.to(new.dtype), what=f"{what} running statistics")
    else:
        assert all(a is b or torch.equal(a, b) for a, b in zip(running, updated, strict=True))
    return output, grads


SHAPES = [(2, 1), (9, 5), (2, 3, 7), (1, 4, 2), (3, 5, 4, 5), (2, 18, 3, 3), (2, 3, 2, 3, 4)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(place, shape, training):
    for dtype in place.dtypes:
        if place.slow and dtype == torch.float16 and not training:
            continue
        for channels_last in (False, True)[: 1 + (len(shape) in CHANNELS_LAST)]:
            drawn = draw(place, shape, dtype, channels_last=channels_last)
            output, _ = check(place, drawn, training, activation="relu", what=f"{dtype} {channels_last}")
            if channels_last:
                assert output.is_contiguous(memory_format=CHANNELS_LAST[len(shape)])
            else:
                assert output.is_contiguous()


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_absent_arguments_and_options(place, training):
    for names in (("input",), ("input", "weight"), ("input", "bias"), NAMES):
        check(place, draw(place, (4, 3, 5), names=names), training, momentum=0.3, eps=0.1, what=str(names))
    if training:
        tensors, _, grad_output = draw(place, (4, 3, 5))
        check(place, (tensors, [None, None], grad_output), activation="relu")


@pytest.mark.parametrize("shape", [(3, 2, 70, 70), (70, 3, 10, 10), (2, 200, 15, 11), (300, 33), (1, 1, 9001)], ids=str)
def test_sizes_beyond_one_piece_or_tile(place, shape):
    if place.slow:
        shape = (min(shape[0], 20), min(shape[1], 17), *(min(size, 12) for size in shape[2:]))
    for channels_last in (False, True)[: 1 + (len(shape) in CHANNELS_LAST)]:
        for dtype in (torch.float32, torch.bfloat16)[: 1 if place.slow else 2]:
            check(place, draw(place, shape, dtype, channels_last=channels_last), activation="relu", what=str(dtype))


@given(
    batch=st.integers(1, 6), channels=st.integers(1, 40), height=st.integers(1, 6), width=st.integers(1, 6),
    training=st.booleans(), channels_last=st.booleans(), relu=st.booleans(), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_shape(place, batch, channels, height, width, training, channels_last, relu, seed, dtype):
    torch.manual_seed(seed)
    if batch * height * width == 1:
        batch = 2
    if place.slow:
        channels = 1 + channels % 5
    names = NAMES[: 1 + seed % 4]
    drawn = draw(place, (batch, channels, height, width), dtype, names, channels_last=channels_last)
    check(place, drawn, training, activation="relu" if relu else "none")


def test_any_layout(place):
    tensors, running, grad_output = draw(place, (4, 6, 5, 3))
    input = tensors["input"]
    layouts = [
        input.transpose(0, 1).contiguous().transpose(0, 1),
        input.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([input, input], -1)[..., 0],
        torch.cat([input, input], 1)[:, 3:9],
        torch.cat([input, input], 1).to(memory_format=torch.channels_last)[:, 3:9],
        input[:, :1].expand(4, 6, 5, 3),
    ]
    strided = {
        **{name: torch.stack([tensors[name]] * 2, 1)[:, 0] for name in ("weight", "bias")},
        "residual": tensors["residual"].to(memory_format=torch.channels_last),
    }
    for layout in layouts:
        for training in (True, False):
            check(place, ({"input": layout, **strided}, running, grad_output), training, activation="relu")
    last = {**tensors, "input": input.to(memory_format=torch.channels_last)}
    for grad in (grad_output, grad_output[:1, :1, :1].expand(4, 6, 5, 3)):
        check(place, (last, running, grad), activation="relu")
    matrix = torch.randn(6, 9, device=place.device).t()
    names = ("input", "weight", "bias")
    check(
        place,
        ({**draw(place, (9, 6), names=names)[0], "input": matrix}, running, torch.randn(9, 6, device=place.device)),
    )


def test_empty_batches(place):
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4), (0, 3)):
        tensors, running, grad_output = draw(place, shape)
        for training in (True, False):
            with place.use():
                output, grads, updated = run(
                    bigkern.batch_norm_act, tensors, running, grad_output, training, 0.1, 1e-5, "relu"
                )
            assert output.shape == grads["input"].shape == grads["residual"].shape == shape
            assert (grads["weight"] == 0).all()
            assert (grads["bias"] == 0).all()
            assert all(torch.equal(a, b) for a, b in zip(running, updated, strict=True))


# ---- numbers that hurt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_common_offset_costs_no_digits(place, channels_last):
    tensors, running, grad_output = draw(place, (6, 5, 8, 8), channels_last=channels_last)
    noise = (tensors["input"] * 512).round() / 512  # multiples of 2^-9: shifting them is exact
    with place.use():
        right, right_grads, _ = run(
            bigkern.batch_norm_act, {**tensors, "input": noise}, running, grad_output, True, 0.1, 1e-5, "relu"
        )
        found, grads, _ = run(
            bigkern.batch_norm_act, {**tensors, "input": noise + 1e4}, running, grad_output, True, 0.1, 1e-5, "relu"
        )
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads["input"], right_grads["input"], rtol=1e-4, atol=1e-4)
    constant = torch.full_like(noise, 1e4 + 0.1)
    constant[:, 1] = noise[:, 1] * 1e-20
    check(place, ({**tensors, "input": constant}, running, grad_output))


def test_non_finite_values_stay_in_their_channel(place):
    for channels_last in (False, True):
        tensors, running, grad_output = draw(place, (3, 7, 5, 5), channels_last=channels_last)
        clean = {name: t.clone() for name, t in tensors.items()}
        for channel, value in ((1, float("nan")), (3, float("inf")), (5, -float("inf"))):
            tensors["input"][1, channel, 2, 2] = value
        arguments = (grad_output, True, 0.1, 1e-5, "relu")
        with place.use():
            output, grads, _ = run(bigkern.batch_norm_act, tensors, running, *arguments)
            right, right_grads, _ = run(bigkern.batch_norm_act, clean, running, *arguments)
            at_inference, inference_grads, _ = run(
                bigkern.batch_norm_act, tensors, running, grad_output, False, 0.1, 1e-5, "relu"
            )
        assert torch.equal(output[:, ::2], right[:, ::2])
        assert torch.equal(grads["input"][:, ::2], right_grads["input"][:, ::2])
        assert output[:, [1, 3, 5]].isnan().all()
        other, other_grads, _ = run(theirs, tensors, running, grad_output, False, 0.1, 1e-5, "relu")
        assert max_error(at_inference, other) < 1e-4
        assert max_error(inference_grads["input"], other_grads["input"]) < 1e-4


# ---- how it runs -----------------------------------------------------------------------------------------------------


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for shape, channels_last in (
        ((5, 1, 80, 80), False),
        ((40, 3, 9, 9), False),
        ((9, 40, 30, 30), True),
        ((900, 70), False),
    ):
        results = []
        drawn = draw(_Here, shape, channels_last=channels_last)
        for threads in (1, max(before, 4)):
            torch.set_num_threads(threads)
            output, grads, _ = run(bigkern.batch_norm_act, *drawn, True, 0.1, 1e-5, "relu")
            results.append([output, *grads.values()])
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _Here:
    device = "cpu"


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for training in (True, False):
        for names, activation in ((NAMES, "relu"), (("input",), "none")):
            tensors, running, _ = draw(place, (3, 2, 2, 2), torch.float64, names)
            leaves = [t.requires_grad_() for t in tensors.values()]

            def call(*values, training=training, names=names, running=running, activation=activation):
                given = dict(zip(names, values, strict=True))
                statistics = [t.clone() for t in running]
                parameters = (given.get("weight"), given.get("bias"), training, 0.1, 1e-5, given.get("residual"))
                return bigkern.batch_norm_act(given["input"], *statistics, *parameters, activation)

            with place.use():
                assert torch.autograd.gradcheck(call, leaves)
                assert torch.autograd.gradgradcheck(call, leaves)


def test_only_what_requires_grad_gets_one(place):
    tensors, running, grad_output = draw(place, (5, 4, 3, 3))
    for training, activation in ((True, "relu"), (True, "none"), (False, "relu"), (False, "none")):
        arguments = (training, 0.1, 1e-5, activation)
        with place.use():
            _, everything, _ = run(bigkern.batch_norm_act, tensors, running, grad_output, *arguments)
            for wanted in NAMES:
                leaves = {name: t.detach().requires_grad_(name == wanted) for name, t in tensors.items()}
                statistics = [t.clone() for t in running]
                parameters = (leaves["weight"], leaves["bias"], training, 0.1, 1e-5, leaves["residual"])
                bigkern.batch_norm_act(leaves["input"], *statistics, *parameters, activation).backward(grad_output)
                torch.testing.assert_close(leaves[wanted].grad, everything[wanted])
                assert all(t.grad is None for name, t in leaves.items() if name != wanted)


def test_float32_parameters_beside_lower_precision(place):
    for dtype in LOW_PRECISION:
        tensors, running, grad_output = draw(place, (4, 5, 3, 3), names=("input", "weight", "bias"))
        tensors["input"] = tensors["input"].to(dtype)
        output, grads = check(place, (tensors, running, grad_output.to(dtype)))
        assert output.dtype == grads["input"].dtype == dtype
        assert grads["weight"].dtype == grads["bias"].dtype == torch.float32


def test_inference_keeps_the_statistics_it_used():
    """Running statistics that change before the backward must not change the gradient."""
    tensors, running, grad_output = draw(_Here, (4, 3, 5))
    input = tensors["input"].requires_grad_()
    with bigkern.use_backend("cpu"):
        output = bigkern.batch_norm_act(input, *running)
        expected = grad_output / (running[1] + 1e-5).sqrt()[:, None]
        running[0].zero_()
        running[1].fill_(9)
        output.backward(grad_output)
    torch.testing.assert_close(input.grad, expected)


def test_registration_is_complete():
    for training, channels_last in ((True, True), (False, False)):
        tensors, running, grad_output = draw(_Here, (3, 4, 2, 2), channels_last=channels_last)
        input, residual, grad = (t.flatten(2) for t in (tensors["input"], tensors["residual"], grad_output))
        weight, bias = tensors["weight"].requires_grad_(), tensors["bias"].requires_grad_()
        statistics = (None, None) if training else running
        call = (
            input.requires_grad_(),
            weight,
            bias,
            residual.requires_grad_(),
            *statistics,
            training,
            1e-5,
            "relu",
        )
        torch.library.opcheck(batch_norm_act_forward.op, call)
        output, mean, var = (t.detach() for t in batch_norm_act_forward(*call))
        call = (grad.requires_grad_(), input, weight, bias, mean, var, output, training, 1e-5, *(True,) * 4)
        torch.library.opcheck(batch_norm_act_backward.op, call)


@bigkern.use_backend("cpu")
def test_module_compiles_with_dynamic_shapes():
    modules = [bigkern.nn.BatchNormAct2d(6) for _ in range(2)]
    compiled = torch.compile(modules[0], fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, training, channels_last in (
        ((3, 6, 4, 5), True, False), ((2, 6, 3, 3), True, True), ((4, 6, 2, 7), True, False), ((2, 6, 4, 4), False, False),
    ):  # fmt: skip
        found = []
        (input, residual), grad_output = (torch.randn(shape) for _ in range(2)), torch.randn(shape)
        if channels_last:
            input, residual = (t.to(memory_format=torch.channels_last) for t in (input, residual))
        for module, call in zip(modules, (compiled, modules[1]), strict=True):
            module.train(training)
            leaves = [t.detach().requires_grad_() for t in (input, residual)]
            output = call(*leaves)
            grads = torch.autograd.grad(output, [*leaves, module.weight, module.bias], grad_output)
            found.append([output, *grads, *module.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_modules_are_torchs(place):
    pairs = (
        (bigkern.nn.BatchNorm1d, torch.nn.BatchNorm1d, (4, 5)),
        (bigkern.nn.BatchNorm1d, torch.nn.BatchNorm1d, (4, 5, 3)),
        (bigkern.nn.BatchNorm2d, torch.nn.BatchNorm2d, (4, 5, 3, 2)),
        (bigkern.nn.BatchNorm3d, torch.nn.BatchNorm3d, (4, 5, 3, 2, 2)),
    )
    for ours, other, shape in pairs:
        for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}):
            mine, right = ours(5, **options, device=place.device), other(5, **options, device=place.device)
            right.load_state_dict(mine.state_dict())
            for step in range(3):
                input = torch.randn(shape, device=place.device)
                if step == 2:
                    mine.eval(), right.eval()
                with place.use():
                    found = mine(input)
                torch.testing.assert_close(found, right(input))
            assert list(mine.state_dict()) == list(right.state_dict())
            for found, expected in zip(mine.state_dict().values(), right.state_dict().values(), strict=True):
                torch.testing.assert_close(found, expected)


def test_fused_module():
    fused, plain = bigkern.nn.BatchNormAct2d(3), torch.nn.BatchNorm2d(3)
    plain.load_state_dict(fused.state_dict())
    input, residual = torch.randn(2, 2, 3, 4, 4)
    with bigkern.use_backend("cpu"):
        torch.testing.assert_close(fused(input, residual), F.relu(plain(input) + residual))
        torch.testing.assert_close(bigkern.nn.BatchNormAct2d(3, activation="none")(input), plain(input))
    assert "activation=relu" in repr(fused)
    with pytest.raises(ValueError, match="BatchNormAct2d: activation must be one of none, relu, got 'gelu'"):
        bigkern.nn.BatchNormAct2d(3, activation="gelu")


def test_functional_is_torchs_and_small_calls_are_its_own():
    input, running = torch.randn(4, 3, 5), (torch.zeros(3), torch.ones(3))
    (decision,) = bigkern.explain(bigkern.functional.batch_norm, input, *running)
    assert decision.chosen == "torch"
    assert torch.equal(bigkern.functional.batch_norm(input, *running), F.batch_norm(input, *running))
    (decision,) = bigkern.explain(bigkern.functional.batch_norm, torch.randn(16, 3, 64, 64), *running)
    assert decision.chosen == "cpu"


X, ONES = torch.ones(4, 3, 5), torch.ones(3)
ERRORS = [
    (lambda f: f(X, None, None), RuntimeError, "running_mean must be defined in evaluation mode"),
    (lambda f: f(X, ONES, None), RuntimeError, "running_var must be defined in evaluation mode"),
    (lambda f: f(X, ONES, None, training=True), ValueError, "running_mean and running_var must either both be None or neither be None"),
    (lambda f: f(X[:1, :, :1], None, None, training=True), ValueError, "Expected more than 1 value per channel when training, got input size torch.Size([1, 3, 1])"),
    (lambda f: f(X, ONES[:2], ONES), RuntimeError, "running_mean should contain 3 elements not 2"),
    (lambda f: f(X, ONES, ONES[:2]), RuntimeError, "running_var should contain 3 elements not 2"),
    (lambda f: f(X, ONES, ONES, ONES[:2]), RuntimeError, "weight should contain 3 elements not 2"),
    (lambda f: f(X, ONES, ONES, ONES, ONES[:2]), RuntimeError, "bias should contain 3 elements not 2"),
    (lambda f: f(X, ONES, ONES, training=True, eps=0.0), ValueError, "batch_norm eps must be positive during training, but got 0.0"),
    (lambda f: f(X, ONES, ONES, eps=-1.0), ValueError, "batch_norm eps must be non-negative, but got -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_are_torchs(call, error, message):
    for function in (bigkern.functional.batch_norm, F.batch_norm):
        with pytest.raises(error) as caught:
            call(function)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X.long(), ONES, ONES), RuntimeError, "batch_norm_act: input must be floating, got torch.int64"),
        (lambda f: f(X[0, 0], ONES, ONES), RuntimeError, "batch_norm_act: input must have 2 to 5 dimensions, got 1"),
        (lambda f: f(X, ONES.int(), ONES), RuntimeError, "batch_norm_act: running_mean must be floating, got torch.int32"),
        (lambda f: f(X, ONES, ONES, ONES.to("meta")), RuntimeError, "batch_norm_act: weight is on meta, input on cpu"),
        (lambda f: f(X, ONES, ONES, residual=X[:1]), ValueError, "batch_norm_act: residual has shape (1, 3, 5), input has (4, 3, 5)"),
        (lambda f: f(X, ONES, ONES, residual=X.half()), ValueError, "batch_norm_act: residual is torch.float16 on cpu, input torch.float32 on cpu"),
        (lambda f: f(X, ONES, ONES, activation="gelu"), ValueError, "batch_norm_act: activation must be one of none, relu, got 'gelu'"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.batch_norm_act)
    assert str(caught.value) == message
