"""int8_linear: a linear layer with int8 weights whose input is rounded to int8, row by row, on the way.

    row_scale = max|x| / 127                      q = round(x / row_scale), half to even
    z[m, n]   = row_scale[m] * weight_scale[n] * sum_k q[m, k] * qweight[n, k] + bias[n]       y = activation(z)

The sum is an int32 and exact. Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018); one scale per row of the input is Dettmers et al., "LLM.int8()" (2022).

Rounding is flat almost everywhere; the gradient takes its slope to be 1 (the straight-through estimator of Bengio et
al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013). What is left is a product of floating
matrices, for which a kernel of its own gains nothing: the backward is composed from PyTorch's operators.
"""

import torch

from ..registration import Kernel, autocast_enabled, cast_floating, short_way
from .linear_act import ACTIVATION_GRADIENTS, ACTIVATIONS, NEEDS_PRE_ACTIVATION
from .quantize import FLOATING, _quantize_torch, dequantize, quantize, scale_dtype

# The largest K whose sum of products, 127 * 128 each, fits an int32.
MAX_DEPTH = (2**31 - 1) // (127 * 128)


def int8_linear(input, qweight, weight_scale, bias=None, activation="none"):
    """act(input @ (weight_scale * qweight).T + bias), the products in int8 and their sum in int32.

    Each row of input is rounded to 255 levels of its own scale, max|row| / 127. A row with a NaN or an infinity gives a
    row of NaN.

    Args:
        input: floating tensor [..., in_features].
        qweight: int8 [out_features, in_features], in_features at most 132104. `bigkern.quantize(weight, axis=0)` makes
            it and weight_scale.
        weight_scale: floating [out_features], or [] for one scale; used in float32 (float64 for float64 input).
        bias: [out_features] of input's dtype (any floating dtype under autocast), or None.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh".

    Returns:
        [..., out_features] of input's dtype. Differentiable in input, weight_scale and bias, any number of times. The
        gradient of input is straight-through: that of the layer whose input was not rounded,
        (grad_z * weight_scale) @ qweight. qweight has none.

    Raises:
        TypeError: a dtype is none of these.
        ValueError: shapes or devices do not go together, in_features is too large, or the activation is none of these.
    """
    if short := short_way():
        output = short.int8_linear(torch.is_grad_enabled(), input, qweight, weight_scale, bias, activation)
        if output is not None:
            return output
    if activation not in ACTIVATIONS:
        raise ValueError(f"int8_linear: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    if autocast_enabled(input.device.type):
        # Not by the kernel's autocast rule, which would round weight_scale too.
        dtype = torch.get_autocast_dtype(input.device.type)
        input, bias = cast_floating(input, dtype), cast_floating(bias, dtype)
    input_shape, weight_shape = input.shape, qweight.shape
    _check(input, qweight, weight_scale, bias, input_shape, weight_shape)
    if weight_scale.dtype != scale_dtype(input.dtype):
        weight_scale = weight_scale.to(scale_dtype(input.dtype))
    if weight_scale.ndim == 0:
        weight_scale = weight_scale.expand(weight_shape[0])
    save_pre_activation = (
        activation in NEEDS_PRE_ACTIVATION
        and torch.is_grad_enabled()
        and (input.requires_grad or weight_scale.requires_grad or (bias is not None and bias.requires_grad))
    )
    if len(input_shape) == 2:
        return int8_linear_forward(input, qweight, weight_scale, bias, activation, save_pre_activation)[0]
    rows = input.reshape(input_shape[:-1].numel(), weight_shape[1])
    output = int8_linear_forward(rows, qweight, weight_scale, bias, activation, save_pre_activation)[0]
    return output.view(*input_shape[:-1], weight_shape[0])


def _check(input, qweight, weight_scale, bias, input_shape, weight_shape):
    dtype, device = input.dtype, input.device
    if dtype not in FLOATING:
        raise TypeError(f"int8_linear: input must be floating, got {dtype}")
    if qweight.dtype != torch.int8:
        raise TypeError(f"int8_linear: qweight must be int8, got {qweight.dtype}")
    if weight_scale.dtype not in FLOATING:
        raise TypeError(f"int8_linear: weight_scale must be floating, got {weight_scale.dtype}")
    if len(weight_shape) != 2:
        raise ValueError(f"int8_linear: qweight must be [out_features, in_features], got shape {tuple(weight_shape)}")
    N, K = weight_shape
    if not input_shape or input_shape[-1] != K:
        raise ValueError(
            f"int8_linear: input of shape {tuple(input_shape)} must end in qweight's in_features, {K} "
            f"(qweight is {tuple(weight_shape)})"
        )
    if K > MAX_DEPTH:
        raise ValueError(f"int8_linear: in_features {K} is above {MAX_DEPTH}, where an int32 sum could overflow")
    if weight_scale.shape not in ((N,), ()):
        raise ValueError(f"int8_linear: weight_scale must have shape ({N},) or (), got {tuple(weight_scale.shape)}")
    if bias is not None:
        if bias.shape != (N,):
            raise ValueError(f"int8_linear: bias must have shape ({N},), got {tuple(bias.shape)}")
        if bias.dtype != dtype:
            raise TypeError(f"int8_linear: bias has dtype {bias.dtype}, input has {dtype}")
    if qweight.device != device or weight_scale.device != device or (bias is not None and bias.device != device):
        others = {"qweight": qweight, "weight_scale": weight_scale, "bias": bias}
        name, other = next((n, t) for n, t in others.items() if t is not None and t.device != device)
        raise ValueError(f"int8_linear: {name} is on {other.device}, input on {device}")


def _allocate(input, qweight, weight_scale, bias, activation, save_pre_activation):
    shape = (input.shape[0], qweight.shape[0])
    return input.new_empty(shape), input.new_empty(shape if save_pre_activation else 0)


def _int8_linear_torch(input, qweight, weight_scale, bias, activation, save_pre_activation):
    qinput, row_scale, _ = _quantize_torch(input[None], True)
    # Whole numbers below 2^24 are exact in float32, whichever way they are added up; below 2^53 in float64.
    exact = torch.float32 if qweight.shape[1] * 127 * 128 < 2**24 else torch.float64
    products = qinput[0].to(exact) @ qweight.to(exact).t()
    # The weight's scale first: a row of huge values has a scale that would overflow with the bare product.
    pre_activation = products.to(weight_scale.dtype) * weight_scale * row_scale[:, None]
    if bias is not None:
        pre_activation = pre_activation + bias
    output = ACTIVATIONS[activation](pre_activation).to(input.dtype, copy=True)
    return output, pre_activation.to(input.dtype) if save_pre_activation else output.new_empty(0)


def _gpu_supports(input, qweight, weight_scale, bias, activation, save_pre_activation):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def _setup_context(ctx, inputs, outputs):
    input, qweight, weight_scale, bias, activation, save_pre_activation = inputs
    output, pre_activation = outputs
    ctx.set_materialize_grads(False)  # pre_activation's gradient exists only inside a second derivative
    if not save_pre_activation:
        ctx.mark_non_differentiable(pre_activation)
    ctx.activation = activation
    ctx.recompute = activation in NEEDS_PRE_ACTIVATION and not save_pre_activation
    if activation in NEEDS_PRE_ACTIVATION:
        saved = None if ctx.recompute else pre_activation
    else:
        saved = None if activation == "none" else output
    ctx.save_for_backward(input, qweight, weight_scale, bias if ctx.recompute else None, saved)


def _backward(ctx, grad_output, grad_pre_activation):
    input, qweight, weight_scale, bias, saved = ctx.saved_tensors
    if ctx.recompute:
        saved = int8_linear_forward(input, qweight, weight_scale, bias, "none", False)[0]
    grad_z = grad_pre_activation
    if grad_output is not None:
        through_activation = ACTIVATION_GRADIENTS[ctx.activation](grad_output, saved)
        grad_z = through_activation if grad_z is None else grad_z + through_activation
    if grad_z is None:
        return (None,) * 6
    needs_input, _, needs_scale, needs_bias, *_ = ctx.needs_input_grad
    grad_input = grad_weight_scale = grad_bias = None
    if needs_input:
        grad_input = grad_z @ dequantize(qweight, weight_scale, axis=0, dtype=input.dtype)
    if needs_scale:
        precise = input.to(weight_scale.dtype)
        qinput, row_scale, _ = quantize(input.detach(), axis=0)
        # The rounded input; its derivative is that of the input, straight through, for second derivatives.
        rounded = precise + (dequantize(qinput, row_scale, axis=0, dtype=precise.dtype) - precise.detach())
        grad_weight_scale = ((grad_z.to(precise.dtype).t() @ rounded) * qweight).sum(1)
    if needs_bias:
        grad_bias = grad_z.sum(0)
    return grad_input, None, grad_weight_scale, grad_bias, None, None


int8_linear_forward = Kernel(
    "int8_linear_forward(Tensor input, Tensor qweight, Tensor weight_scale, Tensor? bias, str activation, "
    "bool save_pre_activation) -> (Tensor output, Tensor pre_activation)",
    module="int8_linear",
    allocate=_allocate,
    torch=_int8_linear_torch,
    supports={"cpu": None, "triton": _gpu_supports, "cuda": _gpu_supports},
    setup_context=_setup_context,
    backward=_backward,
)
