"""act(input @ dequantized weight.T + bias).

input [M, K]; qweight int8 [N, K], or uint8 [N, ceil(K / 2)] with two 4-bit numbers to a byte, the lower half first;
weight_scale and weight_zero_point [N, groups], each group K / groups neighbours of a row; bias [N] or None.
"""

import numpy as np

from .linear_act import activate, activation_backward


def unpack_int4(packed, K):
    """uint8 [N, ceil(K / 2)] -> [N, K] of numbers from 0 to 15."""
    halves = np.stack((packed % 16, packed // 16), axis=2)
    return halves.reshape(len(packed), 2 * packed.shape[1])[:, :K]


def dequantized(qweight, weight_scale, weight_zero_point, K):
    """The floating weight [N, K]."""
    int4 = qweight.dtype == np.uint8
    q = (unpack_int4(qweight, K) if int4 else qweight).astype(weight_scale.dtype)
    N, groups = weight_scale.shape
    zero_point = 8 if int4 else 0
    if weight_zero_point is not None:
        zero_point = weight_zero_point[:, :, None]
    return ((q.reshape(N, groups, K // groups) - zero_point) * weight_scale[:, :, None]).reshape(N, K)


def weight_only_linear_forward(input, qweight, weight_scale, weight_zero_point, bias, activation):
    """(output [M, N],)"""
    z = input @ dequantized(qweight, weight_scale, weight_zero_point, input.shape[1]).T
    return (activate(z if bias is None else z + bias, activation),)


def weight_only_linear_backward(grad_output, input, qweight, weight_scale, weight_zero_point, saved, activation):
    """(grad_input [M, K], grad_bias [N]); saved as in linear_act."""
    grad_z = activation_backward(grad_output, saved, activation)
    return grad_z @ dequantized(qweight, weight_scale, weight_zero_point, input.shape[1]), grad_z.sum(0)
