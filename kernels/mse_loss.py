"""Squared error of contiguous matrices."""

from .pointwise_loss import launch_backward, launch_forward


def mse_loss_forward(input, target, reduction, loss):
    launch_forward(input, target, None, None, reduction, "mse", loss)


def mse_loss_backward(grad_loss, input, target, reduction, needs_target_grad, grad_input, grad_target):
    launch_backward(grad_loss, input, target, None, None, reduction, "mse", needs_target_grad, grad_input, grad_target)
