"""Root-mean-square normalization: see norm.py."""

from .norm import Gradients, launch_backward, launch_forward


def rms_norm_forward(input, weight, eps, output, rstd):
    launch_forward("rms_norm", input, weight, None, eps, output, None, rstd)


def rms_norm_backward(grad_output, input, weight, rstd, needs_input_grad, needs_weight_grad, grad_input, grad_weight):
    grads = Gradients(grad_input if needs_input_grad else None, grad_weight if needs_weight_grad else None, None)
    launch_backward("rms_norm", grad_output, input, weight, None, rstd, grads)
