"""kl_div: the Kullback-Leibler divergence of a distribution from given log-probabilities, element by element.

    loss = target (log target - input)              target as probabilities; 0 where target is 0
    loss = exp(target) (target - input)             target as their logarithms (log_target)

With the logits of a teacher and a student, `bigkern.distillation_loss` does it in one pass, softmax included.
"""

import warnings

import torch
import torch.nn.functional as F

from ..pointwise_loss import as_matrix, check_reduction, check_tensors, is_small, pointwise_kernels

SMALL = 1 << 15

MEAN_WARNING = (
    "reduction: 'mean' divides the total loss by both the batch size and the support size. 'batchmean' divides only by "
    "the batch size, and aligns with the KL div math definition. 'mean' will be changed to behave the same as "
    "'batchmean' in the next major release."
)


def _losses(input, target, log_target):
    return F.kl_div(input, target, reduction="none", log_target=log_target)


def _gradients(input, target, log_target):
    if log_target:
        p = target.exp()
        return -p, p * (target - input + 1)
    # The last 1 is written target / target: NaN where target is 0 and the logarithm has no slope, as PyTorch gives it.
    return -target, target.log() + target / target - input


kl_div_forward, kl_div_backward = pointwise_kernels("kl_div", "str reduction, bool log_target", _losses, _gradients)


def kl_div(input, target, reduction="mean", log_target=False):
    """The Kullback-Leibler divergence, as `torch.nn.functional.kl_div`.

    Args:
        input: floating log-probabilities, any shape.
        target: floating probabilities, or their logarithms, that broadcast with input.
        reduction: "none", "batchmean" (the sum divided by the size of the first dimension: the divergence per sample),
            "sum", or "mean" (over the elements, with PyTorch's warning).
        log_target: target holds logarithms.

    Returns:
        The loss, of the wider of the dtypes (float32 under autocast): [], or the broadcast shape for "none".
        Differentiable in input and target, any number of times.

    Raises:
        RuntimeError: a tensor is not floating or on another device, or the shapes do not broadcast.
        ValueError: reduction is unknown.
    """
    check_tensors("kl_div", input=input, target=target)
    check_reduction(reduction, ("none", "mean", "sum", "batchmean"))
    if reduction == "mean":
        warnings.warn(MEAN_WARNING, stacklevel=2)
    return divergence(input, target, reduction, log_target)


def divergence(input, target, reduction, log_target):
    """kl_div without checks and warning."""
    shape, dtype = torch.broadcast_shapes(input.shape, target.shape), torch.promote_types(input.dtype, target.dtype)
    if target.shape == input.shape and reduction != "mean" and is_small("kl_div", SMALL, input, target):
        return F.kl_div(input, target, reduction=reduction, log_target=log_target)
    if reduction == "batchmean" and input.ndim == 0:
        reduction = "sum"  # as PyTorch
    matrices = as_matrix(input, shape, dtype), as_matrix(target, shape, dtype)
    if reduction == "batchmean" and input.shape[0] != (shape[0] if shape else 1):
        return kl_div_forward(*matrices, "sum", log_target) / input.shape[0]  # the batch is input's, as in PyTorch
    loss = kl_div_forward(*matrices, reduction, log_target)
    return loss.view(shape) if reduction == "none" else loss
