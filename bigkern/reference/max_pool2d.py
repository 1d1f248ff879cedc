"""Maxima over windows of images: input is [batch, channels, height, width]."""

import numpy as np

from .array_module import array_module


def max_pool2d_forward(input, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, ceil_mode):
    """(output, indices) [batch, channels, out_h, out_w]; an index is row * width + column of the maximum in its plane.

    NaN is larger than everything; of equal numbers the first is taken, of NaNs the last.
    """
    xp = array_module(input)
    height, width = input.shape[2:]
    out_h = _output_size(height, kernel_h, stride_h, pad_h, dilation_h, ceil_mode)
    out_w = _output_size(width, kernel_w, stride_w, pad_w, dilation_w, ceil_mode)
    output = xp.zeros((*input.shape[:2], out_h, out_w), input.dtype)
    indices = xp.zeros(output.shape, np.int32)
    for oh in range(out_h):
        for ow in range(out_w):
            rows = [oh * stride_h - pad_h + k * dilation_h for k in range(kernel_h)]
            cols = [ow * stride_w - pad_w + k * dilation_w for k in range(kernel_w)]
            taps = [r * width + c for r in rows if 0 <= r < height for c in cols if 0 <= c < width]
            best = xp.full(input.shape[:2], -np.inf)
            index = xp.full(input.shape[:2], taps[0])
            for tap in taps:
                value = input[:, :, tap // width, tap % width]
                taken = (value > best) | xp.isnan(value)
                best, index = xp.where(taken, value, best), xp.where(taken, tap, index)
            output[:, :, oh, ow], indices[:, :, oh, ow] = best, index
    return output, indices


def max_pool2d_backward(
    grad_output, indices, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
):
    """(grad_input,) [batch, channels, height, width]: the gradients of the windows whose maximum an element is."""
    xp = array_module(grad_output)
    batch, channels, out_h, out_w = grad_output.shape
    planes = xp.arange(batch * channels)
    grad_input = xp.zeros((batch * channels, height * width), grad_output.dtype)
    for oh in range(out_h):
        for ow in range(out_w):
            winners = indices[:, :, oh, ow].reshape(-1)  # one in each plane
            grad_input[planes, winners] += grad_output[:, :, oh, ow].reshape(-1)
    return (grad_input.reshape(batch, channels, height, width),)


def _output_size(size, kernel, stride, pad, dilation, ceil_mode):
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    # A window that would start behind the input and its padding on the left is left out.
    return count - 1 if (count - 1) * stride >= size + pad else count
