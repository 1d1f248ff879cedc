"""Batch normalization of each channel, a residual and an activation: input is [batch, channels, positions]."""

import numpy as np

from .array_module import array_module


def batch_norm_act_forward(input, weight, bias, residual, running_mean, running_var, training, eps, activation):
    """(output, mean [channels], var [channels]): of the batch when training, else the running ones."""
    xp = array_module(input)
    mean, var = _statistics(input) if training else (running_mean, running_var)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        output = (input - mean[:, None]) / xp.sqrt(var + eps)[:, None]
    if weight is not None:
        output = output * weight[:, None]
    if bias is not None:
        output = output + bias[:, None]
    if residual is not None:
        output = output + residual
    if activation == "relu":
        output = xp.where(output < 0, 0, output)
    return output, mean, var


def batch_norm_act_backward(
    grad_output,
    input,
    weight,
    bias,
    mean,
    var,
    output,
    training,
    eps,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    needs_residual_grad,
):
    """(grad_input, grad_weight, grad_bias, grad_residual); each has 0 elements unless it is needed.

    output: what the forward returned, where it ended in a ReLU. The batch's statistics are computed afresh, since the
    kernels' may have been rounded.
    """
    xp = array_module(grad_output)
    if training:
        mean, var = _statistics(input)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rstd = (1 / xp.sqrt(var + eps))[:, None]
        normalized = (input - mean[:, None]) * rstd
        grad = grad_output if output is None else xp.where(output <= 0, 0, grad_output)
        scaled = grad if weight is None else grad * weight[:, None]
        if training:
            count = np.float64(input.shape[0] * input.shape[2])
            mean_grad = scaled.sum((0, 2), keepdims=True) / count
            slope = (scaled * normalized).sum((0, 2), keepdims=True) / count
            grad_input = rstd * (scaled - mean_grad - normalized * slope)
        else:
            grad_input = rstd * scaled
        return (
            grad_input if needs_input_grad else xp.zeros(0),
            (grad * normalized).sum((0, 2)) if needs_weight_grad else xp.zeros(0),
            grad.sum((0, 2)) if needs_bias_grad else xp.zeros(0),
            grad if needs_residual_grad else xp.zeros(0),
        )


def _statistics(input):
    """(mean, biased variance) of each channel; NaN where there is nothing to take them of."""
    count = np.float64(input.shape[0] * input.shape[2])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = input.sum((0, 2)) / count
        var = ((input - mean[:, None]) ** 2).sum((0, 2)) / count
    return mean, var
