"""Squared error of matrices [batch, elements of a sample]."""

from . import pointwise_loss


def mse_loss_forward(input, target, reduction):
    """The loss, [] or input's shape."""
    return (pointwise_loss.reduce((input - target) ** 2, reduction),)


def mse_loss_backward(grad_loss, input, target, reduction, needs_target_grad):
    """(gradient of input, of target or [0])"""
    slopes = 2 * (input - target), 2 * (target - input)
    return pointwise_loss.gradients(grad_loss, slopes, reduction, needs_target_grad)
