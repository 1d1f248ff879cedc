"""Layer normalization: see norm.py."""

from .norm import Gradients, launch_backward, launch_forward


def layer_norm_forward(input, weight, bias, eps, output, mean, rstd):
    launch_forward("layer_norm", input, weight, bias, eps, output, mean, rstd)


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
    grads = Gradients(
        grad_input if needs_input_grad else None,
        grad_weight if needs_weight_grad else None,
        grad_bias if needs_bias_grad else None,
    )
    launch_backward("layer_norm", grad_output, input, weight, mean, rstd, grads)
