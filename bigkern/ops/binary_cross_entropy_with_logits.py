"""binary_cross_entropy_with_logits: how many nats sigmoid(input) misses its targets by, element by element.

    loss = weight * ((1 - t) x + (1 + (pos_weight - 1) t) log(1 + exp(-x)))        t = target, x = input

which is -weight * (pos_weight t log sigmoid(x) + (1 - t) log sigmoid(-x)); with log(1 + exp(-x)) taken as
max(-x, 0) + log(1 + exp(-|x|)), nothing overflows.
"""

import torch
import torch.nn.functional as F

from ..pointwise_loss import (
    as_matrix,
    as_period,
    check_reduction,
    check_tensors,
    is_small,
    pointwise_kernels,
    repeated,
)

SMALL = 1 << 15


def _losses(input, target, weight, pos_weight):
    weight, pos_weight = repeated(weight, input), repeated(pos_weight, input)
    return F.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight, reduction="none")


def _gradients(input, target, weight, pos_weight):
    weight, pos_weight = repeated(weight, input), repeated(pos_weight, input)
    factor = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    grad_input = (1 - target) - factor * torch.sigmoid(-input)
    grad_target = -input if pos_weight is None else (pos_weight - 1) * F.softplus(-input) - input
    if weight is None:
        return grad_input, grad_target
    return weight * grad_input, weight * grad_target


binary_cross_entropy_with_logits_forward, binary_cross_entropy_with_logits_backward = pointwise_kernels(
    "binary_cross_entropy_with_logits", "Tensor? weight, Tensor? pos_weight, str reduction", _losses, _gradients
)


def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    """The binary cross entropy between logits and targets, as `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: floating logits, any shape.
        target: floating probabilities, 0 to 1, of input's shape.
        weight: floating, broadcast to input's shape: a factor for each element. Or None.
        reduction: "none", "mean" (over the elements, whatever their weights) or "sum".
        pos_weight: floating, broadcast to input's shape: a factor for the positive part of each loss. Or None.

    Returns:
        The loss, of the widest of the dtypes (float32 under autocast): [] for "mean" and "sum", input's shape for
        "none". Differentiable in input and target, any number of times.

    Raises:
        ValueError: target has not input's shape, or reduction is unknown.
        RuntimeError: a tensor is not floating or on another device; weight or pos_weight does not broadcast or requires
            a gradient.
    """
    op = "binary_cross_entropy_with_logits"
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    check_tensors(op, input=input, target=target, weight=weight, pos_weight=pos_weight)
    check_reduction(reduction)
    shape, dtype = input.shape, torch.promote_types(input.dtype, target.dtype)
    for name, tensor in (("weight", weight), ("pos_weight", pos_weight)):
        if tensor is None:
            continue
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{op}: not differentiable with respect to {name}")
        if torch.broadcast_shapes(tensor.shape, shape) != shape:
            raise RuntimeError(f"{op}: {name} of shape {list(tensor.shape)} does not broadcast to {list(shape)}")
        dtype = torch.promote_types(dtype, tensor.dtype)
    if is_small(op, SMALL, *(tensor for tensor in (input, target, weight, pos_weight) if tensor is not None)):
        return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    matrices = as_matrix(input, shape, dtype), as_matrix(target, shape, dtype)
    periods = as_period(weight, shape, dtype), as_period(pos_weight, shape, dtype)
    loss = binary_cross_entropy_with_logits_forward(*matrices, *periods, reduction)
    return loss.view(shape) if reduction == "none" else loss
