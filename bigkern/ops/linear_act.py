"""linear_act: act(input @ weight.T + bias) in one kernel; the linear layer is its case "none".

    relu        max(z, 0)
    gelu        z * Phi(z), Phi the normal distribution
    gelu_tanh   z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3))), close to gelu
    silu        z * sigmoid(z)
    sigmoid     1 / (1 + exp(-z))
    tanh        tanh(z)

For the gradient relu, sigmoid and tanh need only their output; gelu, gelu_tanh and silu keep z, and only where a
gradient will be asked for. Products are summed in float32 (float64 for float64), and the activation is applied before
rounding. Source of gelu and silu: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
"""

import torch
import torch.nn.functional as F

from ..registration import Kernel, autocast_enabled, short_way, too_small

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _silu_gradient(grad, z):
    # PyTorch's own kernel is not differentiable.
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, z)
    s = torch.sigmoid(z)
    return grad * s * (1 + z * (1 - s))


# (grad_output, saved) -> gradient of z; each differentiable itself.
ACTIVATION_GRADIENTS = {
    "none": lambda grad, saved: grad,
    "relu": lambda grad, output: torch.ops.aten.threshold_backward(grad, output, 0),
    "gelu": lambda grad, z: torch.ops.aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: torch.ops.aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": _silu_gradient,
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
}
NEEDS_PRE_ACTIVATION = ("gelu", "gelu_tanh", "silu")
# Where a gradient is wanted: below this many multiplications, a derivative written in Python costs more than it saves.
SMALL = 1 << 19
SMALL_REASON = (
    f"with gradients PyTorch's own functions measured faster below {SMALL} multiplications "
    "(benchmarks/bench_overhead.py)"
)


def linear_act(input, weight, bias=None, activation="relu"):
    """act(input @ weight.T + bias).

    Args:
        input: floating tensor [..., in_features].
        weight: [out_features, in_features], of input's dtype (any floating dtype but float64 under autocast).
        bias: [out_features] or None.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh".

    Returns:
        [..., out_features] of input's dtype. Differentiable in input, weight and bias, any number of times.

    Raises:
        TypeError: input is not floating, or the dtypes differ.
        ValueError: shapes or devices do not go together, or the activation is none of these.
    """
    if short := short_way():
        output = short.linear_act(torch.is_grad_enabled(), SMALL, input, weight, bias, activation)
        if output is True:
            return _small_linear_act(input, weight, bias, activation)
        if output is not None:
            return output
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear_act: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    return apply_linear(input, weight, bias, activation, "linear_act")


def apply_linear(input, weight, bias, activation, op):
    """linear_act under the name `op`, which its errors carry."""
    input_shape, weight_shape, dtype, device = input.shape, weight.shape, input.dtype, input.device
    if len(weight_shape) != 2 or not input_shape or input_shape[-1] != weight_shape[1]:
        raise _shape_error(input_shape, weight_shape, op)
    if weight.dtype != dtype or dtype not in FLOATING or weight.device != device:
        _check_pair(input, weight, "weight", op)
    if bias is not None:
        if bias.ndim != 1 or bias.shape[0] != weight_shape[0]:
            raise ValueError(f"{op}: bias must have shape {tuple(weight_shape[:1])}, got {tuple(bias.shape)}")
        if bias.dtype != dtype or bias.device != device:
            _check_pair(input, bias, "bias", op)
    wants_gradient = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    small = wants_gradient and input.numel() * weight_shape[0] < SMALL
    if small and too_small(op, SMALL_REASON, input, weight, bias):
        return _small_linear_act(input, weight, bias, activation)
    save_pre_activation = wants_gradient and activation in NEEDS_PRE_ACTIVATION
    if len(input_shape) == 2:
        return linear_act_forward(input, weight, bias, activation, save_pre_activation)[0]
    rows = input.unsqueeze(0) if len(input_shape) == 1 else input.flatten(0, -2)
    output = linear_act_forward(rows, weight, bias, activation, save_pre_activation)[0]
    return output.view(*input_shape[:-1], weight_shape[0])


def _small_linear_act(input, weight, bias, activation):
    return ACTIVATIONS[activation](F.linear(input, weight, bias))


def _shape_error(input_shape, weight_shape, op):
    if len(weight_shape) != 2:
        return ValueError(f"{op}: weight must be [out_features, in_features], got shape {tuple(weight_shape)}")
    return ValueError(
        f"{op}: input of shape {tuple(input_shape)} must end in weight's in_features, {weight_shape[1]} "
        f"(weight is {tuple(weight_shape)})"
    )


def _check_pair(input, other, name, op):
    for tensor, tensor_name in ((input, "input"), (other, name)):
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{op}: {tensor_name} must be floating, got {tensor.dtype}")
    if input.device != other.device:
        raise ValueError(f"{op}: {name} is on {other.device}, input on {input.device}")
    casts_both = autocast_enabled(input.device.type) and torch.float64 not in (input.dtype, other.dtype)
    if input.dtype != other.dtype and not casts_both:
        raise TypeError(f"{op}: {name} has dtype {other.dtype}, input has {input.dtype}")


def _bfloat16_is_faster_in_torch(input):
    if input.dtype == torch.bfloat16 and input.shape[0] >= 64 and input.is_cpu:
        return "PyTorch's bfloat16 product measured 1.2x faster from 64 rows on (benchmarks/bench_linear_act.py)"
    return None


# ---- forward ---------------------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, bias, activation, save_pre_activation):
    shape = (input.shape[0], weight.shape[0])
    return input.new_empty(*shape), input.new_empty(*shape if save_pre_activation else (0,))


def _forward_torch(input, weight, bias, activation, save_pre_activation):
    pre_activation = F.linear(input, weight, bias)
    output = ACTIVATIONS[activation](pre_activation)
    if not save_pre_activation:
        return output, output.new_empty(0)
    return output, pre_activation.clone() if output is pre_activation else pre_activation


def _gpu_supports_forward(input, weight, bias, activation, save_pre_activation):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def _setup_forward(ctx, inputs, outputs):
    input, weight, bias, activation, save_pre_activation = inputs
    output, pre_activation = outputs
    ctx.set_materialize_grads(False)  # pre_activation's gradient exists only inside a second derivative
    ctx.activation = activation
    ctx.has_pre_activation = save_pre_activation
    ctx.recompute = activation in NEEDS_PRE_ACTIVATION and not save_pre_activation
    if activation in NEEDS_PRE_ACTIVATION:
        saved = None if ctx.recompute else pre_activation
    else:
        saved = None if activation == "none" else output
    ctx.save_for_backward(input, weight, bias if ctx.recompute else None, saved)


def _backward_forward(ctx, grad_output, grad_pre_activation):
    input, weight, bias, saved = ctx.saved_tensors
    if ctx.recompute:
        saved = linear_act_forward(input, weight, bias, "none", False)[0]
    needs = ctx.needs_input_grad[:3]
    grads = (None, None, None)
    if grad_output is not None:
        if saved is None:
            saved = grad_output.new_empty(0)
        grads = linear_act_backward(grad_output, input, weight, saved, ctx.activation, *needs)
    if grad_pre_activation is not None and ctx.has_pre_activation:
        direct = linear_act_backward(grad_pre_activation, input, weight, input.new_empty(0), "none", *needs)
        grads = direct if grads[0] is None else [a + b for a, b in zip(grads, direct, strict=True)]
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None, None


# Defined before the forward, whose gradient calls it.
def _allocate_backward(grad_output, input, weight, saved, activation, needs_input, needs_weight, needs_bias):
    return (
        input.new_empty(*input.shape) if needs_input else input.new_empty(0),
        weight.new_empty(*weight.shape) if needs_weight else input.new_empty(0),
        weight.new_empty(weight.shape[0] if needs_bias else 0),
    )


def _backward_torch(grad_output, input, weight, saved, activation, needs_input, needs_weight, needs_bias):
    grad_z = ACTIVATION_GRADIENTS[activation](grad_output, saved)
    return (
        grad_z @ weight if needs_input else grad_z.new_empty(0),
        grad_z.t() @ input if needs_weight else grad_z.new_empty(0),
        grad_z.sum(0) if needs_bias else grad_z.new_empty(0),
    )


def _gpu_supports_backward(grad_output, *args):
    return "float64 is left to PyTorch on a GPU" if grad_output.dtype == torch.float64 else None


linear_act_backward = Kernel(
    "linear_act_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor saved, str activation, "
    "bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    module="linear_act",
    allocate=_allocate_backward,
    torch=_backward_torch,
    torch_is_faster=lambda grad_output, input, *_: _bfloat16_is_faster_in_torch(input),
    supports={"cpu": None, "triton": _gpu_supports_backward, "cuda": _gpu_supports_backward},
    recompute=True,
)

linear_act_forward = Kernel(
    "linear_act_forward(Tensor input, Tensor weight, Tensor? bias, str activation, bool save_pre_activation) "
    "-> (Tensor output, Tensor pre_activation)",
    module="linear_act",
    allocate=_allocate_forward,
    torch=_forward_torch,
    torch_is_faster=lambda input, *_: _bfloat16_is_faster_in_torch(input),
    supports={"cpu": None, "triton": _gpu_supports_forward, "cuda": _gpu_supports_forward},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
