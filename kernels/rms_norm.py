"""Root-mean-square normalization on GPUs: the kernels are in norm.py and norm_backward.py."""

from .norm import launch_forward
from .norm_backward import launch_backward


def rms_norm_forward(input, weight, eps, output, rstd):
    launch_forward(input, weight, None, eps, output, None, rstd)


def rms_norm_backward(grad_output, input, weight, rstd, needs_input_grad, needs_weight_grad, grad_input, grad_weight):
    launch_backward(
        grad_output,
        input,
        weight,
        None,
        rstd,
        grad_input if needs_input_grad else None,
        grad_weight if needs_weight_grad else None,
        None,
    )
