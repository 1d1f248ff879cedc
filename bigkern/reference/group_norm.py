"""Group normalization: input is [batch, channels, positions]; a group is some channels of one image."""

import numpy as np

from .array_module import array_module


def group_norm_forward(input, weight, bias, num_groups, eps):
    """(output, mean [batch, num_groups], rstd [batch, num_groups]); rstd = 1 / sqrt(variance + eps)."""
    xp = array_module(input)
    rows = input.reshape(input.shape[0], num_groups, -1) if input.size else xp.zeros((input.shape[0], num_groups, 0))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = _mean(rows)
        rstd = 1 / xp.sqrt(_mean((rows - mean) ** 2) + eps)
        output = ((rows - mean) * rstd).reshape(input.shape)
        if weight is not None:
            output = output * weight[:, None]
        if bias is not None:
            output = output + bias[:, None]
    return output, mean[:, :, 0], rstd[:, :, 0]


def group_norm_backward(
    grad_output, input, weight, bias, mean, rstd, num_groups, needs_input_grad, needs_weight_grad, needs_bias_grad
):
    """(grad_input, grad_weight, grad_bias); each has 0 elements unless it is needed.

    mean, which a kernel takes from the forward pass, is computed afresh here: it may have been rounded.
    """
    xp = array_module(grad_output)
    grouped = (input.shape[0], num_groups, -1)
    if not input.size:
        empty = [input, xp.zeros(input.shape[1]), xp.zeros(input.shape[1])]
        needs = (needs_input_grad, needs_weight_grad, needs_bias_grad)
        return tuple(value if needed else xp.zeros(0) for value, needed in zip(empty, needs, strict=True))
    rows = input.reshape(grouped)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        normalized = (rows - _mean(rows)) * rstd[:, :, None]
        scaled = (grad_output if weight is None else grad_output * weight[:, None]).reshape(grouped)
        grad_input = rstd[:, :, None] * (scaled - _mean(scaled) - normalized * _mean(scaled * normalized))
        return (
            grad_input.reshape(input.shape) if needs_input_grad else xp.zeros(0),
            (grad_output * normalized.reshape(input.shape)).sum((0, 2)) if needs_weight_grad else xp.zeros(0),
            grad_output.sum((0, 2)) if needs_bias_grad else xp.zeros(0),
        )


def _mean(rows):
    """[batch, groups, 1]; NaN where a group has no elements."""
    return rows.sum(2, keepdims=True) / np.float64(rows.shape[2])
