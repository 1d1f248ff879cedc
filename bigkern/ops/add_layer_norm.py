"""add_layer_norm: dropout, residual addition and layer normalization in one pass over memory.

    sum    = residual + dropout(input)
    output = layer_norm(sum)

Around each block of a transformer stands one of these. Post-norm (BERT) goes on with the output alone,

    hidden = add_layer_norm(block(hidden), hidden, shape, weight, bias)

pre-norm (GPT) with both, the sum being the residual of the next block:

    normalized, hidden = add_layer_norm_with_sum(block(normalized), hidden, shape, weight, bias)

The sum is rounded to its dtype before it is normalized, so that the output is layer_norm of the very sum returned. It
is written only where somebody wants it: the caller, or the backward, which starts from it. Dropout draws its mask from
a counter (Philox4x32-10, see reference/philox.py), so the backward regenerates it.
"""

import torch
import torch.nn.functional as F

from ..backends.torch_philox import dropout_keep_rows
from ..norm_arguments import as_rows, check_norm, cuda_supports, flat, one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small
from ..rng import draw_rng_state
from .layer_norm import layer_norm_backward_torch, layer_norm_forward_torch

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 18
SMALL_REASON = f"PyTorch's own functions measured faster below {SMALL} elements"


def add_layer_norm(
    input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, dropout_p=0.0, training=True
) -> torch.Tensor:
    """layer_norm(residual + dropout(input)).

    Args:
        input: floating tensor [..., *normalized_shape].
        residual: a tensor of input's shape. Where the dtypes differ, both are promoted, as in PyTorch's addition.
        normalized_shape, weight, bias, eps: as in `layer_norm`.
        dropout_p: the probability, in [0, 1], with which an element of input is set to zero; the others are divided by
            1 - dropout_p. Drawn from torch's generator on input's device.
        training: False: no dropout.

    Returns:
        A contiguous tensor of input's shape and (promoted) dtype; float32 under autocast on CUDA. Differentiable in
        input, residual, weight and bias, any number of times.

    Raises:
        TypeError, RuntimeError: as `layer_norm`.
        ValueError: residual has another shape or device than input, or dropout_p is outside [0, 1].
    """
    return _add_layer_norm(input, residual, normalized_shape, weight, bias, eps, dropout_p, training, False)[0]


def add_layer_norm_with_sum(
    input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, dropout_p=0.0, training=True
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_layer_norm`, and what it normalizes: (layer_norm(sum), sum) with sum = residual + dropout(input).

    Arguments and errors are those of `add_layer_norm`; both results have the same shape and dtype and a gradient.
    """
    return _add_layer_norm(input, residual, normalized_shape, weight, bias, eps, dropout_p, training, True)


def _add_layer_norm(input, residual, normalized_shape, weight, bias, eps, dropout_p, training, with_sum):
    check_norm("add_layer_norm", input, normalized_shape, weight, bias)
    _check(input, residual, normalized_shape, dropout_p)
    if input.dtype != residual.dtype:
        dtype = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(dtype), residual.to(dtype)
    dropped = training and dropout_p > 0
    if dropped and dropout_p == 1:
        input, dropped = F.dropout(input, 1.0), False
    if (
        not dropped
        and input.numel() < SMALL
        and one_dtype(input, weight, bias)
        and too_small("add_layer_norm", SMALL_REASON, input, residual, weight, bias)
    ):
        total = residual + input
        return F.layer_norm(total, normalized_shape, weight, bias, eps), total
    save_sum = with_sum or (
        torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in (input, residual, weight, bias))
    )
    output, total, _, _ = add_layer_norm_forward(
        as_rows(input, normalized_shape),
        as_rows(residual, normalized_shape),
        flat(weight),
        flat(bias),
        draw_rng_state(input.device) if dropped else None,
        float(eps),
        float(dropout_p) if dropped else 0.0,
        save_sum,
    )
    return output.view(input.shape), total.view(input.shape) if with_sum else None


def _check(input, residual, normalized_shape, dropout_p):
    columns_from = input.ndim - len(normalized_shape)
    if columns_from < 0 or tuple(input.shape[columns_from:]) != tuple(normalized_shape):
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
            f"[*, {', '.join(map(str, normalized_shape))}], but got input of size{list(input.shape)}"
        )
    if residual.shape != input.shape:
        raise ValueError(f"add_layer_norm: residual has shape {tuple(residual.shape)}, input has {tuple(input.shape)}")
    if not residual.is_floating_point():
        raise RuntimeError(f"add_layer_norm: residual must be floating, got {residual.dtype}")
    if residual.device != input.device:
        raise ValueError(f"add_layer_norm: residual is on {residual.device}, input on {input.device}")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"add_layer_norm: dropout_p must be between 0 and 1, got {dropout_p}")


def _dropout_weight(rng_state, dropout_p, like):
    """What each element is multiplied by: 0, or 1 / (1 - dropout_p)"""
    return dropout_keep_rows(rng_state, dropout_p, *like.shape).to(like.dtype) / (1 - dropout_p)


# ---- add_layer_norm_backward -----------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(
    grad_output, grad_sum, sum, weight, bias, mean, rstd, rng_state, dropout_p, needs_sum, needs_weight, needs_bias
):
    return (
        sum.new_empty(sum.shape if needs_sum and rng_state is not None else 0),
        sum.new_empty(sum.shape if needs_sum else 0),
        weight.new_empty(weight.shape) if needs_weight else sum.new_empty(0),
        bias.new_empty(bias.shape) if needs_bias else sum.new_empty(0),
    )


def _backward_torch(
    grad_output, grad_sum, sum, weight, bias, mean, rstd, rng_state, dropout_p, needs_sum, needs_weight, needs_bias
):
    wide = sum.to(rstd.dtype)
    gradient, grad_weight, grad_bias = layer_norm_backward_torch(
        grad_output, wide, weight, bias, mean, rstd, needs_sum, needs_weight, needs_bias
    )
    grad_input = sum.new_empty(0)
    if needs_sum:
        if grad_sum is not None:
            gradient = gradient + grad_sum.to(wide.dtype)
        if rng_state is not None:
            grad_input = (gradient * _dropout_weight(rng_state, dropout_p, wide)).to(sum.dtype)
    return (
        grad_input,
        gradient.to(sum.dtype),
        grad_weight if needs_weight else sum.new_empty(0),
        grad_bias if needs_bias else sum.new_empty(0),
    )


add_layer_norm_backward = Kernel(
    "add_layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, Tensor? rng_state, float dropout_p, bool needs_sum_grad, bool needs_weight_grad, "
    "bool needs_bias_grad) -> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
    module="add_layer_norm",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={
        "cpu": None,
        "triton": lambda grad_output, grad_sum, sum, *_: triton_supports(sum),
        "cuda": lambda grad_output, grad_sum, sum, *_: cuda_supports(sum),
    },
    recompute=True,
)


# ---- add_layer_norm_forward ------------------------------------------------------------------------------------------


def _allocate_forward(input, residual, weight, bias, rng_state, eps, dropout_p, save_sum):
    statistics = statistics_dtype(input.dtype)
    return (
        input.new_empty(input.shape),
        input.new_empty(input.shape if save_sum else 0),
        input.new_empty(input.shape[0], dtype=statistics),
        input.new_empty(input.shape[0], dtype=statistics),
    )


def _forward_torch(input, residual, weight, bias, rng_state, eps, dropout_p, save_sum):
    x = input.to(statistics_dtype(input.dtype))
    if rng_state is not None:
        x = x * _dropout_weight(rng_state, dropout_p, x)
    total = (residual + x).to(input.dtype)
    output, mean, rstd = layer_norm_forward_torch(total, weight, bias, eps)
    return output, total if save_sum else total.new_empty(0), mean, rstd


def _setup_forward(ctx, inputs, outputs):
    input, residual, weight, bias, rng_state, ctx.eps, ctx.dropout_p, ctx.has_sum = inputs
    _, total, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    addends = (None, None) if ctx.has_sum else (input, residual)
    ctx.save_for_backward(total if ctx.has_sum else None, *addends, weight, bias, mean, rstd, rng_state)


def _backward_forward(ctx, grad_output, grad_sum, _grad_mean, _grad_rstd):
    total, input, residual, weight, bias, mean, rstd, rng_state = ctx.saved_tensors
    if not ctx.has_sum:
        grad_sum = None
        _, total, _, _ = add_layer_norm_forward(input, residual, weight, bias, rng_state, ctx.eps, ctx.dropout_p, True)
    if grad_output is None and grad_sum is None:
        return (None,) * 8
    if grad_output is None:
        grad_output = torch.zeros_like(total)
    needs_input, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    grad_input, grad_residual, grad_weight, grad_bias = add_layer_norm_backward(
        grad_output,
        grad_sum,
        total,
        weight,
        bias,
        mean,
        rstd,
        rng_state,
        ctx.dropout_p,
        needs_input or needs_residual,
        needs_weight,
        needs_bias,
    )
    if rng_state is None:
        grad_input = grad_residual
    grads = (grad_input, grad_residual, grad_weight, grad_bias)
    return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), *(None,) * 4


add_layer_norm_forward = Kernel(
    "add_layer_norm_forward(Tensor input, Tensor residual, Tensor? weight, Tensor? bias, Tensor? rng_state, float eps, "
    "float dropout_p, bool save_sum) -> (Tensor output, Tensor sum, Tensor mean, Tensor rstd)",
    module="add_layer_norm",
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
