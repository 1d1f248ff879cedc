"""Residual addition, dropout and layer normalization: see norm.py."""

from .norm import Addition, AdditionGradient, Gradients, launch_backward, launch_forward


def add_layer_norm_forward(input, residual, weight, bias, rng_state, eps, dropout_p, save_sum, output, sum, mean, rstd):
    addition = Addition(residual, rng_state, dropout_p, sum if save_sum else None)
    launch_forward("add_layer_norm", input, weight, bias, eps, output, mean, rstd, addition)


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
    grads = Gradients(
        grad_residual if needs_sum_grad else None,
        grad_weight if needs_weight_grad else None,
        grad_bias if needs_bias_grad else None,
    )
    addition = AdditionGradient(
        grad_sum, rng_state, dropout_p, grad_input if needs_sum_grad and rng_state is not None else None
    )
    launch_backward("add_layer_norm", grad_output, sum, weight, mean, rstd, grads, addition)
