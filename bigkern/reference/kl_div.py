"""Kullback-Leibler divergence of matrices [batch, elements of a sample]: input holds log-probabilities."""

import numpy as np

from . import pointwise_loss
from .array_module import array_module


@np.errstate(invalid="ignore", divide="ignore")
def kl_div_forward(input, target, reduction, log_target):
    """The loss, [] or input's shape."""
    xp = array_module(input)
    if log_target:
        losses = xp.exp(target) * (target - input)
    else:
        entropy = xp.where(target == 0, 0, target * xp.log(xp.where(target == 0, 1, target)))
        losses = entropy - target * input
    return (pointwise_loss.reduce(losses, reduction),)


@np.errstate(invalid="ignore", divide="ignore")
def kl_div_backward(grad_loss, input, target, reduction, log_target, needs_target_grad):
    """(gradient of input, of target or [0])"""
    xp = array_module(grad_loss)
    if log_target:
        slopes = -xp.exp(target), xp.exp(target) * (target - input + 1)
    else:
        slopes = -target, xp.log(target) + target / target - input  # NaN where target is 0
    return pointwise_loss.gradients(grad_loss, slopes, reduction, needs_target_grad)
