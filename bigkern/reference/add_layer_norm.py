"""Layer normalization of the rows of residual + dropout(input), all [rows, columns]."""

from .array_module import array_module
from .layer_norm import layer_norm_backward, layer_norm_forward
from .philox import dropout_keep_rows


def add_layer_norm_forward(input, residual, weight, bias, rng_state, eps, dropout_p, save_sum):
    """(output [rows, columns], sum, mean [rows], rstd [rows]); sum has 0 elements unless save_sum."""
    total = residual + input * _dropout_weight(rng_state, dropout_p, input.shape)
    output, mean, rstd = layer_norm_forward(total, weight, bias, eps)
    return output, total if save_sum else array_module(input).zeros(0), mean, rstd


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
):
    """(grad_input, grad_residual, grad_weight, grad_bias); each has 0 elements unless it is needed.

    Without dropout grad_input has none either: it would be grad_residual again.
    """
    needs = (needs_sum_grad, needs_weight_grad, needs_bias_grad)
    gradient, *grads = layer_norm_backward(grad_output, sum, weight, bias, mean, rstd, *needs)
    if needs_sum_grad and grad_sum is not None:
        gradient = gradient + grad_sum
    grad_input = array_module(sum).zeros(0)
    if needs_sum_grad and rng_state is not None:
        grad_input = gradient * _dropout_weight(rng_state, dropout_p, sum.shape)
    return grad_input, gradient, *grads


def _dropout_weight(rng_state, dropout_p, shape):
    """What each element is multiplied by: 0, or 1 / (1 - dropout_p)"""
    return 1.0 if rng_state is None else dropout_keep_rows(rng_state, dropout_p, *shape) / (1 - dropout_p)
