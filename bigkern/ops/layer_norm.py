"""layer_norm: every row shifted to mean 0 and scaled to variance 1, then scaled and shifted per column.

    mean   = mean of x            var = mean of (x - mean)^2            rstd = 1 / sqrt(var + eps)
    output = (x - mean) * rstd * weight + bias

The variance is taken around the mean in float32 or better, so that a large common offset costs no digits. The backward
reads input and grad_output once, given mean and rstd: with g = grad_output * weight and n = (x - mean) * rstd,

    grad_input = rstd * (g - mean of g - n * mean of (g * n))
    grad_weight = sum over rows of grad_output * n            grad_bias = sum over rows of grad_output

Those sums run over blocks of rows that depend on the shape alone, in one order: the same bits on any number of threads.
Source: Ba, Kiros, Hinton, "Layer Normalization" (2016).
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import as_rows, check_norm, cuda_supports, flat, one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 3 << 17
SMALL_REASON = f"PyTorch's own function measured faster below {SMALL} elements"


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Layer normalization over the last dimensions, as `torch.nn.functional.layer_norm`.

    Args:
        input: floating tensor [..., *normalized_shape].
        normalized_shape: tuple or list of ints: the sizes of the dimensions that are normalized together.
        weight, bias: floating, of shape normalized_shape, or None. Any floating dtype, unlike PyTorch.
        eps: added to the variance.

    Returns:
        A contiguous tensor of input's shape and dtype (float32 under autocast on CUDA, as PyTorch's). Differentiable in
        input, weight and bias, any number of times. A row that holds NaN or infinity gives NaN in that row alone.

    Raises:
        TypeError: normalized_shape is not a tuple or list of ints.
        RuntimeError: shapes, dtypes or devices do not go together.
    """
    check_norm("layer_norm", input, normalized_shape, weight, bias)
    columns_from = input.ndim - len(normalized_shape)
    if columns_from < 0 or tuple(input.shape[columns_from:]) != tuple(normalized_shape):
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
            f"[*, {', '.join(map(str, normalized_shape))}], but got input of size{list(input.shape)}"
        )
    if (
        input.numel() < SMALL
        and one_dtype(input, weight, bias)
        and too_small("layer_norm", SMALL_REASON, input, weight, bias)
    ):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    output, _, _ = layer_norm_forward(as_rows(input, normalized_shape), flat(weight), flat(bias), float(eps))
    return output.view(input.shape)


# ---- layer_norm_backward ---------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, input, weight, bias, mean, rstd, needs_input, needs_weight, needs_bias):
    return (
        input.new_empty(input.shape if needs_input else 0),
        weight.new_empty(weight.shape) if needs_weight else input.new_empty(0),
        bias.new_empty(bias.shape) if needs_bias else input.new_empty(0),
    )


def layer_norm_backward_torch(
    grad_output, input, weight, bias, mean, rstd, needs_input_grad, needs_weight_grad, needs_bias_grad
):
    """The kernels' function in PyTorch's operators, differentiable in grad_output, input and weight.

    PyTorch's own backward kernel takes the rounded mean, and is differentiable in a slower way.
    """
    grad_output, x, rstd = grad_output.to(rstd.dtype), input.to(rstd.dtype), rstd[:, None]
    centered = x - x.mean(1, keepdim=True)
    if torch.is_grad_enabled():
        variance = centered.square().mean(1, keepdim=True)
        # The value that the forward saved, with the derivative that it had not: eps is not needed again.
        rstd = (rstd**-2 + (variance - variance.detach())).rsqrt()
    normalized = centered * rstd
    g = grad_output if weight is None else grad_output * weight.to(x.dtype)
    slope = (g * normalized).mean(1, keepdim=True)
    grad_input = rstd * (g - g.mean(1, keepdim=True) - normalized * slope)
    return (
        grad_input.to(input.dtype) if needs_input_grad else input.new_empty(0),
        (grad_output * normalized).sum(0).to(weight.dtype) if needs_weight_grad else input.new_empty(0),
        grad_output.sum(0).to(bias.dtype) if needs_bias_grad else input.new_empty(0),
    )


layer_norm_backward = Kernel(
    "layer_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, "
    "bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    module="layer_norm",
    allocate=_allocate_backward,
    torch=layer_norm_backward_torch,
    supports={
        "cpu": None,
        "triton": lambda grad_output, input, *_: triton_supports(input),
        "cuda": lambda grad_output, input, *_: cuda_supports(input),
    },
    recompute=True,
)


# ---- layer_norm_forward ----------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, bias, eps):
    statistics = statistics_dtype(input.dtype)
    return (
        input.new_empty(input.shape),
        input.new_empty(input.shape[0], dtype=statistics),
        input.new_empty(input.shape[0], dtype=statistics),
    )


def layer_norm_forward_torch(input, weight, bias, eps):
    """(output, mean, rstd); the same function as the kernels'."""
    dtype = statistics_dtype(input.dtype)
    w, b = (None if parameter is None else parameter.to(dtype) for parameter in (weight, bias))
    output, mean, rstd = torch.native_layer_norm(input.to(dtype), input.shape[1:], w, b, eps)
    return output.to(input.dtype), mean.view(-1), rstd.view(-1)


def _setup_forward(ctx, inputs, outputs):
    input, weight, bias, _ = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, mean, rstd)


def _backward_forward(ctx, grad_output, _grad_mean, _grad_rstd):
    if grad_output is None:
        return (None,) * 4
    needs = ctx.needs_input_grad[:3]
    grads = layer_norm_backward(grad_output, *ctx.saved_tensors, *needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None


layer_norm_forward = Kernel(
    "layer_norm_forward(Tensor input, Tensor? weight, Tensor? bias, float eps) "
    "-> (Tensor output, Tensor mean, Tensor rstd)",
    module="layer_norm",
    allocate=_allocate_forward,
    torch=layer_norm_forward_torch,
    supports={
        "cpu": None,
        "triton": lambda input, *_: triton_supports(input),
        "cuda": lambda input, *_: cuda_supports(input),
    },
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast={"cuda": "float32"},
)
