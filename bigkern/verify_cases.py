"""What `bigkern verify` checks: a case is inputs, the bigkern call and PyTorch's own call, on the same named inputs.

The oracle needs no line here: it is the bigkern call in float64 on the `reference` backend. Floating inputs are drawn
in float32 and rounded to the dtype under test. Sizes are odd, so that every kernel meets its remainders.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import bigkern

from .backends.torch_philox import dropout_keep_rows
from .ops.add_layer_norm import add_layer_norm_forward
from .ops.grad_norm import clip_grads_step

ALL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Case:
    """One thing to check.

    `bigkern` and `torch` take the inputs by name and return a tensor, or a dict of named tensors; gradients of
    `gradients` (names of inputs) are checked too.
    """

    op: str
    name: str
    inputs: Callable[[], dict[str, torch.Tensor]]
    bigkern: Callable
    torch: Callable
    gradients: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES


# ---- attention -------------------------------------------------------------------------------------------------------


def _attention(name, heads=4, kv_heads=4, len_q=33, len_k=33, mask=None, **options):
    def inputs():
        drawn = {
            "query": torch.randn(2, heads, len_q, 40),
            "key": torch.randn(2, kv_heads, len_k, 40),
            "value": torch.randn(2, kv_heads, len_k, 40),
        }
        return drawn if mask is None else {**drawn, "attn_mask": mask(len_q, len_k)}

    gradients = ("query", "key", "value", "attn_mask") if mask is _float_mask else ("query", "key", "value")
    return Case(
        "attention",
        name,
        inputs,
        lambda **tensors: bigkern.attention(**tensors, **options),
        lambda **tensors: F.scaled_dot_product_attention(**tensors, **options),
        gradients,
    )


def _bool_mask(len_q, len_k):
    mask = torch.rand(len_q, len_k) < 0.6
    mask[:, 0] = True
    mask[len_q // 2] = False  # one query that sees nothing
    return mask


def _float_mask(len_q, len_k):
    return torch.randn(2, 1, len_q, len_k)


ATTENTION = [
    _attention("self"),
    _attention("cross 17x50, scale 0.3", len_q=17, len_k=50, scale=0.3),
    _attention("causal", is_causal=True),
    _attention("causal 20x37", len_q=20, len_k=37, is_causal=True),
    _attention("bool mask", mask=_bool_mask),
    _attention("additive mask", mask=_float_mask),
    _attention("grouped queries 4/2", kv_heads=2, enable_gqa=True),
    _attention("one query, grouped 4/1", kv_heads=1, len_q=1, len_k=65, enable_gqa=True),
]


# ---- linear_act ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _linear_act(activation, M=33, N=37, K=65, bias=True):
    def inputs():
        drawn = {"input": torch.randn(M, K), "weight": torch.randn(N, K) / K**0.5}
        return {**drawn, "bias": torch.randn(N)} if bias else drawn

    function = ACTIVATIONS[activation]
    return Case(
        "linear_act",
        f"{activation} {M}x{K}x{N}" + ("" if bias else ", no bias"),
        inputs,
        lambda **tensors: bigkern.linear_act(**tensors, activation=activation),
        lambda **tensors: function(F.linear(**tensors)),
        ("input", "weight", "bias") if bias else ("input", "weight"),
    )


LINEAR_ACT = [
    *(_linear_act(activation) for activation in ACTIVATIONS),
    _linear_act("relu", bias=False),
    _linear_act("gelu", M=1, N=129, K=130),
]


# ---- cross_entropy ---------------------------------------------------------------------------------------------------


def _cross_entropy(name, shape=(23, 101), weight=False, probabilities=False, ignored=False, **options):
    N, C, *rest = shape

    def inputs():
        drawn = {"input": torch.randn(shape) * 3}
        if probabilities:
            drawn["target"] = torch.softmax(torch.randn(shape), 1)
        else:
            drawn["target"] = torch.randint(0, C, (N, *rest))
        if ignored:
            drawn["target"].view(-1)[::3] = options.get("ignore_index", -100)
        return {**drawn, "weight": torch.rand(C) + 0.5} if weight else drawn

    return Case(
        "cross_entropy",
        name,
        inputs,
        lambda **tensors: bigkern.cross_entropy(**tensors, **options),
        lambda **tensors: F.cross_entropy(**tensors, **options),
        ("input", "target") if probabilities else ("input",),
    )


CROSS_ENTROPY = [
    _cross_entropy("mean"),
    _cross_entropy("sum", reduction="sum"),
    _cross_entropy("none", reduction="none"),
    _cross_entropy("32x1000", shape=(32, 1000)),
    _cross_entropy("ignore_index", ignored=True, ignore_index=7),
    _cross_entropy("class weights, smoothing", weight=True, ignored=True, label_smoothing=0.1),
    _cross_entropy("probabilities, smoothing", probabilities=True, label_smoothing=0.1),
    _cross_entropy("images 3x11x5x7", shape=(3, 11, 5, 7)),
]


# ---- layer_norm, rms_norm --------------------------------------------------------------------------------------------


def _norm(op, name, shape=(23, 101), dims=1, parameters=(), offset=0.0, **options):
    normalized_shape = shape[-dims:]

    def inputs():
        drawn = {"input": torch.randn(shape) + offset}
        return {**drawn, **{parameter: torch.randn(normalized_shape) for parameter in parameters}}

    ours, theirs = getattr(bigkern, op), getattr(F, op)
    return Case(
        op,
        name,
        inputs,
        lambda input, **rest: ours(input, normalized_shape, **rest, **options),
        lambda input, **rest: theirs(input, normalized_shape, **rest, **options),
        ("input", *parameters),
    )


LAYER_NORM = [
    _norm("layer_norm", "23x101", parameters=("weight", "bias")),
    _norm("layer_norm", "70x768", (70, 768), parameters=("weight", "bias")),
    _norm("layer_norm", "3x5x7x9 over two dimensions, eps 0.1", (3, 5, 7, 9), 2, ("weight", "bias"), eps=0.1),
    _norm("layer_norm", "2x9001, no bias", (2, 9001), parameters=("weight",)),
    _norm("layer_norm", "no parameters"),
    _norm("layer_norm", "mean 100", parameters=("weight", "bias"), offset=100.0),
]
RMS_NORM = [
    _norm("rms_norm", "23x101", parameters=("weight",)),
    _norm("rms_norm", "70x768", (70, 768), parameters=("weight",)),
    _norm("rms_norm", "3x5x7x9 over two dimensions, eps 0.1", (3, 5, 7, 9), 2, ("weight",), eps=0.1),
    _norm("rms_norm", "2x9001", (2, 9001), parameters=("weight",)),
    _norm("rms_norm", "no weight"),
]


# ---- add_layer_norm --------------------------------------------------------------------------------------------------


def _add_layer_norm(name, shape=(23, 101), with_sum=False, dropped=False):
    """With dropout: the kernel on a random state of the case's own, and the formula with the mask of that state."""

    def inputs():
        drawn = {name: torch.randn(shape) for name in ("input", "residual")}
        drawn |= {name: torch.randn(shape[-1]) for name in ("weight", "bias")}
        return {**drawn, "rng_state": torch.tensor([1234567890123, 5])} if dropped else drawn

    def ours(input, residual, weight, bias, rng_state=None):
        if dropped:
            found = add_layer_norm_forward(input, residual, weight, bias, rng_state, 1e-5, DROPOUT_P, True)[:2]
        else:
            found = bigkern.add_layer_norm_with_sum(input, residual, shape[-1:], weight, bias)
        return found[0] + found[1] if with_sum else found[0]

    def theirs(input, residual, weight, bias, rng_state=None):
        if dropped:
            input = input * dropout_keep_rows(rng_state, DROPOUT_P, *shape) / (1 - DROPOUT_P)
        total = residual + input
        output = F.layer_norm(total, shape[-1:], weight, bias)
        return output + total if with_sum else output

    return Case("add_layer_norm", name, inputs, ours, theirs, ("input", "residual", "weight", "bias"))


DROPOUT_P = 0.1
ADD_LAYER_NORM = [
    _add_layer_norm("post-norm"),
    _add_layer_norm("post-norm, dropout", dropped=True),
    _add_layer_norm("pre-norm", with_sum=True),
    _add_layer_norm("pre-norm 70x768, dropout", (70, 768), with_sum=True, dropped=True),
    _add_layer_norm("post-norm 2x9001, dropout", (2, 9001), dropped=True),
]


# ---- quantize --------------------------------------------------------------------------------------------------------


def rounding(input, qinput, scale, zero_point, axis):
    """How far each x / scale is from the integer that stands for it: at most 1/2, and the same whichever way a tie that
    only rounding makes is broken, which the integers themselves are not."""
    if axis is not None:
        shape = [1] * input.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero_point = zero_point.reshape(shape) if zero_point is not None else None
    steps = qinput.double() - (zero_point.double() if zero_point is not None else 0)
    return (input.double() / scale.double() - steps).abs().to(scale.dtype)


def _scale_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _quantize_composed(input, axis, symmetric):
    """The formula of bigkern.quantize as a PyTorch user would write it."""
    x = input.to(_scale_dtype(input.dtype))
    others = [d for d in range(x.ndim) if axis is None or d != axis]
    if symmetric:
        scale = x.abs().amax(others, keepdim=True) / 127
        qinput, zero_point = torch.round(x / scale).clamp(-127, 127).to(torch.int8), None
    else:
        lo, hi = x.amin(others, keepdim=True).clamp(max=0), x.amax(others, keepdim=True).clamp(min=0)
        scale = (hi - lo) / 255
        zero_point = torch.round(-128 - lo / scale).clamp(-128, 127)
        qinput = (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8)
        zero_point = zero_point.to(torch.int32).flatten()
    shape = () if axis is None else (input.shape[axis],)
    return qinput, scale.reshape(shape), None if zero_point is None else zero_point.reshape(shape)


def _quantize(name, shape, axis, symmetric):
    def outcome(quantize):
        def call(input):
            qinput, scale, zero_point = quantize(input, axis=axis, symmetric=symmetric)
            found = {"scale": scale, "rounding": rounding(input, qinput, scale, zero_point, axis)}
            return found if symmetric else {**found, "zero_point": zero_point}

        return call

    return Case(
        "quantize",
        name,
        lambda: {"input": torch.randn(shape) * 3 + 1},
        outcome(bigkern.quantize),
        outcome(_quantize_composed),
    )


def _dequantize(name, axis, symmetric):
    def inputs():
        groups = () if axis is None else (37,)
        return {
            "qinput": torch.randint(-128, 128, (37, 65), dtype=torch.int8),
            "scale": torch.rand(groups) + 0.1,
            "zero_point": torch.randint(-20, 20, groups, dtype=torch.int32),
        }

    def ours(qinput, scale, zero_point):
        zero_point = None if symmetric else zero_point
        dtype = scale.dtype
        scale = scale.to(_scale_dtype(dtype))
        return bigkern.dequantize(qinput, scale, zero_point, axis=axis, dtype=dtype)

    def theirs(qinput, scale, zero_point):
        wide = scale.to(_scale_dtype(scale.dtype))
        steps = qinput if symmetric else qinput - (zero_point if axis is None else zero_point[:, None])
        return (steps * (wide if axis is None else wide[:, None])).to(scale.dtype)

    return Case("quantize", name, inputs, ours, theirs, ("scale",))


QUANTIZE = [
    _quantize("per tensor", (37, 65), None, True),
    _quantize("per row", (37, 65), 0, True),
    _quantize("per channel, axis 1", (5, 12, 33), 1, True),
    _quantize("per tensor, affine", (37, 65), None, False),
    _quantize("per row, affine", (37, 65), 0, False),
    _dequantize("back, per tensor", None, True),
    _dequantize("back, per row, affine", 0, False),
]


# ---- int8_linear -----------------------------------------------------------------------------------------------------


def _int8_linear_composed(input, qweight, weight_scale, bias=None, activation="none"):
    """The formula of bigkern.int8_linear in PyTorch; its gradient goes straight through the rounding."""
    x = input.to(_scale_dtype(input.dtype))
    with torch.no_grad():
        qinput, row_scale, _ = _quantize_composed(x, 0, True)
        shift = qinput * row_scale[:, None] - x
    z = F.linear(x + shift, qweight.to(x.dtype)) * weight_scale.to(x.dtype)
    if bias is not None:
        z = z + bias.to(x.dtype)
    return ACTIVATIONS[activation](z).to(input.dtype)


def _int8_linear(activation, M=33, N=37, K=65, bias=True):
    def inputs():
        drawn = {
            "input": torch.randn(M, K),
            "qweight": torch.randint(-127, 128, (N, K), dtype=torch.int8),
            "weight_scale": (torch.rand(N) + 0.5) / 127,
        }
        return {**drawn, "bias": torch.randn(N)} if bias else drawn

    return Case(
        "int8_linear",
        f"{activation} {M}x{K}x{N}" + ("" if bias else ", no bias"),
        inputs,
        lambda **tensors: bigkern.int8_linear(**tensors, activation=activation),
        lambda **tensors: _int8_linear_composed(**tensors, activation=activation),
        ("input", "weight_scale", "bias") if bias else ("input", "weight_scale"),
    )


INT8_LINEAR = [
    *(_int8_linear(activation) for activation in ACTIVATIONS),
    _int8_linear("none", bias=False),
    _int8_linear("relu", M=1, N=130, K=129),
]


# ---- optimizers ------------------------------------------------------------------------------------------------------


def _draw_parameters():
    shapes = {"0": (37, 65), "1": (33,), "2": ()}
    return {f"{kind}_{i}": torch.randn(shape) for kind in ("param", "grad") for i, shape in shapes.items()}


def _pairs(tensors):
    return [[tensors[f"{kind}_{i}"] for i in range(3)] for kind in ("param", "grad")]


def _in_one_line(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _optimizer(op, name, class_name, **options):
    """Three steps; the parameters, and each kind of state, as one vector."""

    def outcome(optimizer_class, options):
        def call(**tensors):
            params, grads = _pairs(tensors)
            optimizer = optimizer_class(params, **options)
            for step in range(3):
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad.roll(step)
                optimizer.step()
            kinds = [kind for kind in optimizer.state[params[0]] if kind != "step"]
            state = {kind: _in_one_line([optimizer.state[param][kind] for param in params]) for kind in kinds}
            return {"params": _in_one_line(params), **state}

        return call

    ours, theirs = getattr(bigkern.optim, class_name), getattr(torch.optim, class_name)
    return Case(op, name, _draw_parameters, outcome(ours, options), outcome(theirs, options))


def _grad_norm(name, norm_type, max_norm):
    def ours(**tensors):
        grads = _pairs(tensors)[1]
        total_norm, grad_factor = bigkern.grad_norm(grads, max_norm, norm_type)
        clip_grads_step(grads, grad_factor)
        return {"total_norm": total_norm, "clipped": _in_one_line(grads)}

    def theirs(**tensors):
        params, grads = _pairs(tensors)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        total_norm = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
        return {"total_norm": total_norm, "clipped": _in_one_line(grads)}

    return Case("grad_norm", name, _draw_parameters, ours, theirs)


# An epsilon that float16 can hold: squares of small gradients are 0 there.
EPS = {"eps": 1e-2}
OPTIMIZERS = [
    _optimizer("sgd", "plain", "SGD", lr=0.1),
    _optimizer("sgd", "momentum, dampening, decay", "SGD", lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    _optimizer("sgd", "nesterov, maximize", "SGD", lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    _optimizer("adam", "decay", "Adam", lr=0.1, weight_decay=0.1, **EPS),
    _optimizer("adam", "decoupled decay", "AdamW", lr=0.1, **EPS),
    _optimizer("adam", "amsgrad, maximize", "Adam", lr=0.1, amsgrad=True, maximize=True, **EPS),
    _optimizer("rmsprop", "plain", "RMSprop", lr=0.1, **EPS),
    _optimizer(
        "rmsprop", "centered, momentum, decay", "RMSprop", lr=0.1, centered=True, momentum=0.9, weight_decay=0.1, **EPS
    ),
    _optimizer("adagrad", "decay of both", "Adagrad", lr=0.1, lr_decay=0.1, weight_decay=0.1, **EPS),
    _grad_norm("norm 2, clipped", 2.0, 1.0),
    _grad_norm("largest, clipped", float("inf"), 1.0),
    _grad_norm("norm 2, not clipped", 2.0, 1e6),
]

LAYERS = [*ATTENTION, *LINEAR_ACT, *CROSS_ENTROPY, *LAYER_NORM, *RMS_NORM, *ADD_LAYER_NORM, *QUANTIZE, *INT8_LINEAR]
CASES = [*LAYERS, *OPTIMIZERS]
OPS = tuple(dict.fromkeys(case.op for case in CASES))
