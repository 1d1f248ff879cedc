"""activation(gate) * up, both [rows, columns]; or up None, and both side by side in gate [rows, 2 * columns]."""

import numpy as np

from .array_module import array_module
from .linear_act import activate, activation_backward


@np.errstate(invalid="ignore", over="ignore")
def gated_act_forward(gate, up, activation):
    """(output [rows, columns],)"""
    gate, up = _halves(gate, up)
    return (activate(gate, activation) * up,)


@np.errstate(invalid="ignore", over="ignore")
def gated_act_backward(grad_output, gate, up, activation):
    """(grad_gate of gate's shape, grad_up); without up, grad_up has 0 elements."""
    xp = array_module(grad_output)
    x, u = _halves(gate, up)
    grad_gate, grad_up = activation_backward(grad_output * u, x, activation), grad_output * activate(x, activation)
    if up is None:
        return xp.concatenate([grad_gate, grad_up], 1), xp.zeros(0)
    return grad_gate, grad_up


def _halves(gate, up):
    xp = array_module(gate)
    return xp.split(gate, 2, 1) if up is None else (gate, up)
