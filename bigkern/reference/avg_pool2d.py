"""Averages over windows of images: input is [batch, channels, height, width]; divisor_override 0 means none."""

from .array_module import array_module


def avg_pool2d_forward(
    input,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    ceil_mode,
    count_include_pad,
    divisor_override,
):
    """(output,) [batch, channels, out_h, out_w]"""
    xp = array_module(input)
    height, width = input.shape[2:]
    rows = _windows(height, kernel_h, stride_h, pad_h, ceil_mode, count_include_pad)
    cols = _windows(width, kernel_w, stride_w, pad_w, ceil_mode, count_include_pad)
    output = xp.zeros((*input.shape[:2], len(rows), len(cols)), input.dtype)
    for oh, (inside_h, count_h) in enumerate(rows):
        for ow, (inside_w, count_w) in enumerate(cols):
            total = input[:, :, inside_h, inside_w].sum((2, 3))
            output[:, :, oh, ow] = total / (divisor_override or count_h * count_w)
    return (output,)


def avg_pool2d_backward(
    grad_output,
    height,
    width,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    ceil_mode,
    count_include_pad,
    divisor_override,
):
    """(grad_input,) [batch, channels, height, width]"""
    xp = array_module(grad_output)
    rows = _windows(height, kernel_h, stride_h, pad_h, ceil_mode, count_include_pad)
    cols = _windows(width, kernel_w, stride_w, pad_w, ceil_mode, count_include_pad)
    grad_input = xp.zeros((*grad_output.shape[:2], height, width), grad_output.dtype)
    for oh, (inside_h, count_h) in enumerate(rows):
        for ow, (inside_w, count_w) in enumerate(cols):
            share = grad_output[:, :, oh, ow] / (divisor_override or count_h * count_w)
            grad_input[:, :, inside_h, inside_w] += share[:, :, None, None]
    return (grad_input,)


def _windows(size, kernel, stride, pad, ceil_mode, count_include_pad):
    """[(slice of the input, how many it counts as)] of each window along one dimension."""
    room = size + 2 * pad - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + pad:
        count -= 1  # it would start in the padding behind the end
    windows = []
    for start in range(-pad, -pad + count * stride, stride):
        end = min(start + kernel, size + pad)
        inside = slice(max(start, 0), min(end, size))
        windows.append((inside, end - start if count_include_pad else inside.stop - inside.start))
    return windows
