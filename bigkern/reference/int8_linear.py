"""act(dequantized input @ dequantized qweight.T + bias), the input's rows quantized on the way.

input [M, K], qweight int8 [N, K], weight_scale [N], bias [N] or None.
"""

import numpy as np

from .array_module import array_module
from .linear_act import activate, activation_backward
from .quantize import quantize_forward


def int8_linear_forward(input, qweight, weight_scale, bias, activation, save_pre_activation):
    """(output [M, N], pre_activation [M, N], or [0] where it is not saved)."""
    qinput, row_scale, _ = quantize_forward(input[None], symmetric=True)
    products = qinput[0].astype(np.int64) @ qweight.astype(np.int64).T
    pre_activation = products * row_scale[:, None] * weight_scale
    if bias is not None:
        pre_activation = pre_activation + bias
    saved = pre_activation if save_pre_activation else array_module(input).zeros(0)
    return activate(pre_activation, activation), saved


def int8_linear_backward(grad_output, input, qweight, weight_scale, saved, activation):
    """(grad_input [M, K], grad_weight_scale [N], grad_bias [N]), as if rounding the input had slope 1."""
    qinput, row_scale, _ = quantize_forward(input[None], symmetric=True)
    rounded_input = qinput[0] * row_scale[:, None]
    grad_z = activation_backward(grad_output, saved, activation)
    return (
        (grad_z * weight_scale) @ qweight,
        (grad_z * (rounded_input @ qweight.T)).sum(0),
        grad_z.sum(0),
    )
