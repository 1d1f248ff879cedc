"""Binary cross entropy of logits [batch, elements of a sample]; weights are the vectors that their elements repeat."""

from . import pointwise_loss
from .array_module import array_module


def _softplus(x):
    """log(1 + exp(x))"""
    xp = array_module(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def binary_cross_entropy_with_logits_forward(input, target, weight, pos_weight, reduction):
    """The loss, [] or input's shape."""
    weight, pos_weight = (pointwise_loss.repeated(w, input) for w in (weight, pos_weight))
    losses = weight * ((1 - target) * input + (1 + (pos_weight - 1) * target) * _softplus(-input))
    return (pointwise_loss.reduce(losses, reduction),)


def binary_cross_entropy_with_logits_backward(
    grad_loss, input, target, weight, pos_weight, reduction, needs_target_grad
):
    """(gradient of input, of target or [0])"""
    xp = array_module(grad_loss)
    weight, pos_weight = (pointwise_loss.repeated(w, input) for w in (weight, pos_weight))
    sigmoid_of_minus = xp.exp(-_softplus(input))
    slopes = (
        weight * ((1 - target) - (1 + (pos_weight - 1) * target) * sigmoid_of_minus),
        weight * ((pos_weight - 1) * _softplus(-input) - input),
    )
    return pointwise_loss.gradients(grad_loss, slopes, reduction, needs_target_grad)
