"""Layer normalization of the rows of a matrix: input is [rows, columns], weight and bias are [columns] or None."""

import numpy as np

from .array_module import array_module


def layer_norm_forward(input, weight, bias, eps):
    """(output [rows, columns], mean [rows], rstd [rows]); rstd = 1 / sqrt(variance + eps)."""
    xp = array_module(input)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = _mean(input)
        centered = input - mean
        rstd = 1 / xp.sqrt(_mean(centered**2) + eps)
        output = centered * rstd
        if weight is not None:
            output = output * weight
        if bias is not None:
            output = output + bias
    return output, mean[:, 0], rstd[:, 0]


def layer_norm_backward(
    grad_output, input, weight, bias, mean, rstd, needs_input_grad, needs_weight_grad, needs_bias_grad
):
    """(grad_input, grad_weight, grad_bias); each has 0 elements unless it is needed.

    mean, which a kernel takes from the forward pass, is computed afresh here: it may have been rounded.
    """
    xp = array_module(input)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rstd = rstd[:, None]
        normalized = (input - _mean(input)) * rstd
        grad_normalized = grad_output if weight is None else grad_output * weight
        slope = _mean(grad_normalized * normalized)
        grad_input = rstd * (grad_normalized - _mean(grad_normalized) - normalized * slope)
    return (
        grad_input if needs_input_grad else xp.zeros(0),
        (grad_output * normalized).sum(0) if needs_weight_grad else xp.zeros(0),
        grad_output.sum(0) if needs_bias_grad else xp.zeros(0),
    )


def _mean(rows):
    """[rows, 1]; NaN where there are no columns."""
    return rows.sum(1, keepdims=True) / np.float64(rows.shape[1])
