"""Root-mean-square normalization of the rows of a matrix: input is [rows, columns], weight is [columns] or None."""

import numpy as np

from .array_module import array_module


def rms_norm_forward(input, weight, eps):
    """(output [rows, columns], rstd [rows]); rstd = 1 / sqrt(mean of squares + eps)."""
    xp = array_module(input)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rstd = 1 / xp.sqrt(_mean(input**2) + eps)
        output = input * rstd
        if weight is not None:
            output = output * weight
    return output, rstd[:, 0]


def rms_norm_backward(grad_output, input, weight, rstd, needs_input_grad, needs_weight_grad):
    """(grad_input, grad_weight); each has 0 elements unless it is needed."""
    xp = array_module(input)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rstd = rstd[:, None]
        normalized = input * rstd
        grad_normalized = grad_output if weight is None else grad_output * weight
        grad_input = rstd * (grad_normalized - normalized * _mean(grad_normalized * normalized))
    return (
        grad_input if needs_input_grad else xp.zeros(0),
        (grad_output * normalized).sum(0) if needs_weight_grad else xp.zeros(0),
    )


def _mean(rows):
    """[rows, 1]; NaN where there are no columns."""
    return rows.sum(1, keepdims=True) / np.float64(rows.shape[1])
