"""mse_loss: the squares of the differences between input and target, in one pass forward and one backward.

loss = (input - target)^2        grad_input = 2 (input - target) grad_loss
"""

import warnings

import torch
import torch.nn.functional as F

from ..pointwise_loss import as_matrix, check_reduction, check_tensors, is_small, pointwise_kernels

SMALL = 1 << 20

mse_loss_forward, mse_loss_backward = pointwise_kernels(
    "mse_loss",
    "str reduction",
    lambda input, target: (input - target).square(),
    lambda input, target: (2 * (input - target), 2 * (target - input)),
)


def mse_loss(input, target, reduction="mean", weight=None):
    """The squared error between input and target, as `torch.nn.functional.mse_loss`.

    Args:
        input, target: floating tensors that broadcast together (with a warning where their shapes differ).
        reduction: "none", "mean" or "sum".
        weight: of input's shape, a factor for each square; "mean" then divides by its sum. Or None.

    Returns:
        The loss, of the wider of the dtypes (float32 under autocast): [] for "mean" and "sum", the broadcast shape for
        "none". Differentiable in input, target and weight, any number of times.

    Raises:
        RuntimeError: a tensor is not floating or on another device, or the shapes do not broadcast.
        ValueError: reduction is unknown, or weight has not input's shape.
    """
    check_tensors("mse_loss", input=input, target=target, weight=weight)
    check_reduction(reduction)
    if target.shape != input.shape:
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). This will "
            "likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            stacklevel=2,
        )
    if weight is not None:
        # Composed: in training, weights are the exception, and the squares one more pass.
        if weight.shape != input.shape:
            raise ValueError("Weights and input must have the same size.")
        weighted = mse_loss(*torch.broadcast_tensors(input, target), "none") * weight
        if reduction == "none":
            return weighted
        return weighted.sum() / weight.sum() if reduction == "mean" else weighted.sum()
    shape, dtype = torch.broadcast_shapes(input.shape, target.shape), torch.promote_types(input.dtype, target.dtype)
    if target.shape == input.shape and is_small("mse_loss", SMALL, input, target):
        return F.mse_loss(input, target, reduction=reduction)
    loss = mse_loss_forward(as_matrix(input, shape, dtype), as_matrix(target, shape, dtype), reduction)
    return loss.view(shape) if reduction == "none" else loss
