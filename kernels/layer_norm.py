"""Layer normalization on GPUs: the kernels are in norm.py and norm_backward.py."""

from .norm import launch_forward
from .norm_backward import launch_backward


def layer_norm_forward(input, weight, bias, eps, output, mean, rstd):
    launch_forward(input, weight, bias, eps, output, mean, rstd)


def layer_norm_backward(
    grad_output,
    input,
    weight,
    bias,
    mean,
    rstd,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    grad_input,
    grad_weight,
    grad_bias,
):
    launch_backward(
        grad_output,
        input,
        weight,
        mean,
        rstd,
        grad_input if needs_input_grad else None,
        grad_weight if needs_weight_grad else None,
        grad_bias if needs_bias_grad else None,
    )
