"""Residual addition, dropout and layer normalization on GPUs: the kernels of layer_norm, given an addition."""

from .norm import launch_forward
from .norm_addition import Addition
from .norm_backward import AdditionGradient, launch_backward


def add_layer_norm_forward(input, residual, weight, bias, rng_state, eps, dropout_p, save_sum, output, sum, mean, rstd):
    addition = Addition(residual, rng_state, dropout_p, sum if save_sum else None)
    launch_forward(input, weight, bias, eps, output, mean, rstd, addition)


def add_layer_norm_backward(
    grad_output,
    grad_sum,
    sum,
    weight,
    bias,
    mean,
    rstd,
    rng_state,
    dropout_p,
    needs_sum_grad,
    needs_weight_grad,
    needs_bias_grad,
    grad_input,
    grad_residual,
    grad_weight,
    grad_bias,
):
    launch_backward(
        grad_output,
        sum,
        weight,
        mean,
        rstd,
        grad_residual if needs_sum_grad else None,
        grad_weight if needs_weight_grad else None,
        grad_bias if needs_bias_grad else None,
        AdditionGradient(grad_sum, rng_state, dropout_p, None if rng_state is None else grad_input),
    )
