"""conv_transpose2d(input, weight) + bias. input [N, C, H, W], weight [C, O / groups, kernel_h, kernel_w].

Every value of the input, times the kernel, is added to the output at its place:
output[n, o, y * stride + i * dilation - padding, ...] += weight[c, o, i, j] * input[n, c, y, x].
"""

import numpy as np

from .array_module import array_module
from .conv2d import conv2d_forward, pad, parts, taps


def transposed_size(size, kernel, stride, padding, output_padding, dilation):
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


@np.errstate(invalid="ignore")  # infinities make NaN, as they should
def conv_transpose2d_forward(
    input,
    weight,
    bias,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
):
    """(output [N, O, output height, output width],)"""
    xp = array_module(input)
    N, C, H, W = input.shape
    _, out_channels, *kernel = weight.shape
    out_channels *= groups
    height = transposed_size(H, kernel[0], stride_h, padding_h, output_padding_h, dilation_h)
    width = transposed_size(W, kernel[1], stride_w, padding_w, output_padding_w, dilation_w)
    padded = xp.zeros((N, out_channels, height + 2 * padding_h, width + 2 * padding_w), input.dtype)
    for i, j, place in taps(kernel, (H, W), stride_h, stride_w, dilation_h, dilation_w):
        for ours, theirs in zip(parts(out_channels, groups), parts(C, groups), strict=True):
            padded[place][:, ours] += xp.einsum(
                "nchw,co->nohw", input[:, theirs], weight[theirs, :, i, j], optimize=True
            )
    output = padded[:, :, padding_h : padding_h + height, padding_w : padding_w + width]
    return (output if bias is None else output + bias[:, None, None],)


@np.errstate(invalid="ignore")
def conv_transpose2d_backward(
    grad_output,
    input,
    weight,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    """(grad_input, grad_weight, grad_bias); [0] where one is not asked for."""
    xp = array_module(grad_output)
    C, _, *kernel = weight.shape
    H, W = input.shape[2:]
    geometry = stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w
    grad_input = conv2d_forward(grad_output, weight, None, *geometry, groups, "none")[0][:, :, :H, :W]
    grad_weight = xp.zeros_like(weight)
    padded = pad(grad_output, padding_h, padding_w)
    for i, j, place in taps(kernel, (H, W), stride_h, stride_w, dilation_h, dilation_w):
        for ours, theirs in zip(parts(grad_output.shape[1], groups), parts(C, groups), strict=True):
            grad_weight[theirs, :, i, j] = xp.einsum(
                "nchw,nohw->co", input[:, theirs], padded[place][:, ours], optimize=True
            )
    return (
        grad_input if needs_input_grad else xp.zeros(0),
        grad_weight if needs_weight_grad else xp.zeros(0),
        grad_output.sum(3).sum(2).sum(0) if needs_bias_grad else xp.zeros(0),
    )
