"""Kullback-Leibler divergence of contiguous matrices: input holds log-probabilities."""

from .pointwise_loss import launch_backward, launch_forward


def kind_of(log_target):
    return "kl_log" if log_target else "kl"


def kl_div_forward(input, target, reduction, log_target, loss):
    launch_forward(input, target, None, None, reduction, kind_of(log_target), loss)


def kl_div_backward(grad_loss, input, target, reduction, log_target, needs_target_grad, grad_input, grad_target):
    kind = kind_of(log_target)
    launch_backward(grad_loss, input, target, None, None, reduction, kind, needs_target_grad, grad_input, grad_target)
