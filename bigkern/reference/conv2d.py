"""act(conv2d(input, weight) + bias). input [N, C, H, W], weight [O, C / groups, kernel_h, kernel_w], bias [O] or None.

output[n, o, y, x] = sum over c, i, j of weight[o, c, i, j] * padded[n, c, y * stride + i * dilation, ...]: one tap
(i, j) of the kernel after another.
"""

import numpy as np

from .array_module import array_module


def output_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pad(image, padding_h, padding_w):
    xp = array_module(image)
    return xp.pad(image, ((0, 0), (0, 0), (padding_h, padding_h), (padding_w, padding_w)))


def taps(kernel_size, output_shape, stride_h, stride_w, dilation_h, dilation_w):
    """(i, j, the places of the padded image that tap (i, j) meets) for every tap."""
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            rows = slice(i * dilation_h, i * dilation_h + (output_shape[0] - 1) * stride_h + 1, stride_h)
            cols = slice(j * dilation_w, j * dilation_w + (output_shape[1] - 1) * stride_w + 1, stride_w)
            yield i, j, (slice(None), slice(None), rows, cols)


def parts(count, groups):
    """The channels of each group."""
    return [slice(group * (count // groups), (group + 1) * (count // groups)) for group in range(groups)]


@np.errstate(invalid="ignore")  # infinities make NaN, as they should
def conv2d_forward(
    input, weight, bias, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation
):
    """(output [N, O, output height, output width],)"""
    xp = array_module(input)
    N, C, H, W = input.shape
    out_channels, _, *kernel = weight.shape
    size = (
        output_size(H, kernel[0], stride_h, padding_h, dilation_h),
        output_size(W, kernel[1], stride_w, padding_w, dilation_w),
    )
    padded = pad(input, padding_h, padding_w)
    output = xp.zeros((N, out_channels, *size), input.dtype)
    for i, j, place in taps(kernel, size, stride_h, stride_w, dilation_h, dilation_w):
        met = padded[place]
        for ours, theirs in zip(parts(out_channels, groups), parts(C, groups), strict=True):
            output[:, ours] += xp.einsum("nchw,oc->nohw", met[:, theirs], weight[ours, :, i, j], optimize=True)
    if bias is not None:
        output = output + bias[:, None, None]
    return (xp.maximum(output, 0) if activation == "relu" else output,)


@np.errstate(invalid="ignore")
def conv2d_backward(
    grad_output,
    input,
    weight,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    groups,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    """(grad_input, grad_weight, grad_bias), without the activation; [0] where one is not asked for."""
    xp = array_module(grad_output)
    H, W = input.shape[2:]
    out_channels, _, *kernel = weight.shape
    size = grad_output.shape[2:]
    padded = pad(input, padding_h, padding_w)
    grad_padded, grad_weight = xp.zeros_like(padded), xp.zeros_like(weight)
    for i, j, place in taps(kernel, size, stride_h, stride_w, dilation_h, dilation_w):
        for ours, theirs in zip(parts(out_channels, groups), parts(input.shape[1], groups), strict=True):
            grad, met = grad_output[:, ours], padded[place][:, theirs]
            grad_padded[place][:, theirs] += xp.einsum("nohw,oc->nchw", grad, weight[ours, :, i, j], optimize=True)
            grad_weight[ours, :, i, j] = xp.einsum("nohw,nchw->oc", grad, met, optimize=True)
    grad_input = grad_padded[:, :, padding_h : padding_h + H, padding_w : padding_w + W]
    return (
        grad_input if needs_input_grad else xp.zeros(0),
        grad_weight if needs_weight_grad else xp.zeros(0),
        grad_output.sum(3).sum(2).sum(0) if needs_bias_grad else xp.zeros(0),
    )
