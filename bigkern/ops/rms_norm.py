"""rms_norm: every row divided by the root of its mean square, then scaled per column.

    rstd = 1 / sqrt(mean of x^2 + eps)            output = x * rstd * weight

The backward reads input and grad_output once, given rstd: with g = grad_output * weight and n = x * rstd,

    grad_input = rstd * (g - n * mean of (g * n))            grad_weight = sum over rows of grad_output * n

in the order of summation that layer_norm has. Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import as_rows, check_norm, cuda_supports, flat, one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 14
SMALL_REASON = f"PyTorch's own function measured faster below {SMALL} elements"


def rms_norm(input, normalized_shape, weight=None, eps=None):
    """Root-mean-square normalization over the last dimensions, as `torch.nn.functional.rms_norm`.

    Args:
        input: floating tensor [..., *normalized_shape].
        normalized_shape: tuple or list of ints: the sizes of the dimensions that are normalized together.
        weight: floating, of shape normalized_shape, or None. Any floating dtype.
        eps: added to the mean square; None: the machine epsilon of the dtype computed in, float64's for float64 and
            float32's for all else, as PyTorch has it.

    Returns:
        A contiguous tensor of input's shape and dtype (float32 under autocast on CUDA, as PyTorch's). Differentiable in
        input and weight, any number of times. A row that holds NaN or infinity changes no other row.

    Raises:
        TypeError: normalized_shape is not a tuple or list of ints.
        ValueError: input has fewer dimensions than normalized_shape.
        RuntimeError: shapes, dtypes or devices do not go together.
    """
    check_norm("rms_norm", input, normalized_shape, weight)
    columns_from = input.ndim - len(normalized_shape)
    if columns_from < 0:
        raise ValueError(f"Input tensor must have at least {len(normalized_shape)} dimensions, but got {input.ndim}")
    if tuple(input.shape[columns_from:]) != tuple(normalized_shape):
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
            f"[*{', '.join(map(str, normalized_shape))}], but got input of size{list(input.shape)}"
        )
    if input.numel() < SMALL and one_dtype(input, weight) and too_small("rms_norm", SMALL_REASON, input, weight):
        return F.rms_norm(input, normalized_shape, weight, eps)
    if eps is None:
        eps = torch.finfo(statistics_dtype(input.dtype)).eps
    output, _ = rms_norm_forward(as_rows(input, normalized_shape), flat(weight), float(eps))
    return output.view(input.shape)


# ---- rms_norm_backward -----------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, input, weight, rstd, needs_input_grad, needs_weight_grad):
    return (
        input.new_empty(input.shape if needs_input_grad else 0),
        weight.new_empty(weight.shape) if needs_weight_grad else input.new_empty(0),
    )


def _backward_torch(grad_output, input, weight, rstd, needs_input_grad, needs_weight_grad):
    grad_output, x, rstd = grad_output.to(rstd.dtype), input.to(rstd.dtype), rstd[:, None]
    if torch.is_grad_enabled():
        square = x.square().mean(1, keepdim=True)
        # The value that the forward saved, with the derivative that it had not: eps is not needed again.
        rstd = (rstd**-2 + (square - square.detach())).rsqrt()
    normalized = x * rstd
    g = grad_output if weight is None else grad_output * weight.to(x.dtype)
    grad_input = rstd * (g - normalized * (g * normalized).mean(1, keepdim=True))
    return (
        grad_input.to(input.dtype) if needs_input_grad else input.new_empty(0),
        (grad_output * normalized).sum(0).to(weight.dtype) if needs_weight_grad else input.new_empty(0),
    )


rms_norm_backward = Kernel(
    "rms_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor rstd, bool needs_input_grad, "
    "bool needs_weight_grad) -> (Tensor grad_input, Tensor grad_weight)",
    module="rms_norm",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={
        "cpu": None,
        "triton": lambda grad_output, input, *_: triton_supports(input),
        "cuda": lambda grad_output, input, *_: cuda_supports(input),
    },
    recompute=True,
)


# ---- rms_norm_forward ------------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, eps):
    return input.new_empty(input.shape), input.new_empty(input.shape[0], dtype=statistics_dtype(input.dtype))


def _forward_torch(input, weight, eps):
    x = input.to(statistics_dtype(input.dtype))
    rstd = (x.square().mean(1) + eps).rsqrt()
    output = x * rstd[:, None]
    if weight is not None:
        output = output * weight.to(x.dtype)
    return output.to(input.dtype), rstd


def _setup_forward(ctx, inputs, outputs):
    input, weight, _ = inputs
    ctx.mark_non_differentiable(outputs[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, outputs[1])


def _backward_forward(ctx, grad_output, _grad_rstd):
    if grad_output is None:
        return (None,) * 3
    needs = ctx.needs_input_grad[:2]
    grads = rms_norm_backward(grad_output, *ctx.saved_tensors, *needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None


rms_norm_forward = Kernel(
    "rms_norm_forward(Tensor input, Tensor? weight, float eps) -> (Tensor output, Tensor rstd)",
    module="rms_norm",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={
        "cpu": None,
        "triton": lambda input, *_: triton_supports(input),
        "cuda": lambda input, *_: cuda_supports(input),
    },
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast={"cuda": "float32"},
)
