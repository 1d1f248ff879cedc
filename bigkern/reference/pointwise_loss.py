"""Reductions of losses [batch, elements of a sample], and what they leave of the loss's gradient for an element."""

import numpy as np

from .array_module import array_module


def reduce(losses, reduction):
    with np.errstate(invalid="ignore", divide="ignore"):
        if reduction == "mean":
            return losses.sum() / np.float64(losses.size)
        if reduction == "batchmean":
            return losses.sum() / np.float64(losses.shape[0])
    return losses.sum() if reduction == "sum" else losses


def gradients(grad_loss, slopes, reduction, needs_target_grad):
    """(gradient of input, of target or [0]) from slopes = (d loss / d input, d loss / d target)"""
    xp = array_module(slopes[0])
    divisor = {"mean": slopes[0].size, "batchmean": slopes[0].shape[0]}.get(reduction, 1)
    grad_input, grad_target = (grad_loss / max(divisor, 1) * slope for slope in slopes)
    return grad_input, grad_target if needs_target_grad else xp.zeros(0)


def repeated(period, like):
    """A weight, given as the vector that its elements repeat, in the shape of `like`."""
    xp = array_module(like)
    return xp.ones(like.shape) if period is None else xp.resize(period, like.shape)
