"""act(input @ weight.T + bias). input [M, K], weight [N, K], bias [N] or None."""

import math

import numpy as np

from .array_module import array_module

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def erfc(x):
    if array_module(x) is np:
        return np.vectorize(math.erfc, otypes=[float])(x)
    from cupyx.scipy import special

    return special.erfc(x)


def sigmoid(x):
    xp = array_module(x)
    decay = xp.exp(-xp.abs(x))  # of -|x|: neither side overflows or cancels
    return xp.where(x < 0, decay, 1) / (1 + decay)


def gelu_tanh_gate(x):
    """(1 + tanh(y)) / 2 with y = sqrt(2/pi) (x + 0.044715 x^3)"""
    return sigmoid(2 * SQRT_2_OVER_PI * (x + 0.044715 * x**3))


def activate(x, activation):
    xp = array_module(x)
    if activation == "relu":
        return xp.maximum(x, 0)
    if activation == "gelu":
        return x * 0.5 * erfc(-x / math.sqrt(2))
    if activation == "gelu_tanh":
        return x * gelu_tanh_gate(x)
    if activation == "silu":
        return x * sigmoid(x)
    if activation == "sigmoid":
        return sigmoid(x)
    if activation == "tanh":
        return xp.tanh(x)
    return x


def activation_backward(grad, saved, activation):
    """grad * act'(x) from saved: act(x) for relu, sigmoid and tanh; x for gelu, gelu_tanh and silu."""
    xp = array_module(grad)
    if activation == "relu":
        return xp.where(saved <= 0, 0, grad)
    if activation == "gelu":
        density = xp.exp(-0.5 * saved**2) / math.sqrt(2 * math.pi)
        return grad * (0.5 * erfc(-saved / math.sqrt(2)) + saved * density)
    if activation == "gelu_tanh":
        open_, closed = gelu_tanh_gate(saved), gelu_tanh_gate(-saved)
        slope = 2 * SQRT_2_OVER_PI * (1 + 3 * 0.044715 * saved**2)
        return grad * (open_ + saved * open_ * closed * slope)
    if activation == "silu":
        return grad * sigmoid(saved) * (1 + saved * sigmoid(-saved))
    if activation == "sigmoid":
        return grad * saved * (1 - saved)
    if activation == "tanh":
        return grad * (1 - saved**2)
    return grad


@np.errstate(invalid="ignore")  # infinities make NaN, as they should
def linear_act_forward(input, weight, bias, activation, save_pre_activation):
    """(output [M, N], pre_activation [M, N], or [0] where it is not saved)."""
    xp = array_module(input)
    pre_activation = input @ weight.T
    if bias is not None:
        pre_activation = pre_activation + bias
    return activate(pre_activation, activation), pre_activation if save_pre_activation else xp.zeros(0)


@np.errstate(invalid="ignore")
def linear_act_backward(
    grad_output, input, weight, saved, activation, needs_input_grad, needs_weight_grad, needs_bias_grad
):
    """(grad_input [M, K], grad_weight [N, K], grad_bias [N]); [0] where one is not asked for."""
    xp = array_module(input)
    grad_z = activation_backward(grad_output, saved, activation)
    return (
        grad_z @ weight if needs_input_grad else xp.zeros(0),
        grad_z.T @ input if needs_weight_grad else xp.zeros(0),
        grad_z.sum(0) if needs_bias_grad else xp.zeros(0),
    )
