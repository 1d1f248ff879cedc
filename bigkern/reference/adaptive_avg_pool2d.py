"""Averages over out_h by out_w windows that cover an image: input is [batch, channels, height, width]."""

from .array_module import array_module


def adaptive_avg_pool2d_forward(input, out_h, out_w):
    """(output,) [batch, channels, out_h, out_w]"""
    xp = array_module(input)
    output = xp.zeros((*input.shape[:2], out_h, out_w), input.dtype)
    for oh, rows in enumerate(_windows(input.shape[2], out_h)):
        for ow, cols in enumerate(_windows(input.shape[3], out_w)):
            output[:, :, oh, ow] = input[:, :, rows, cols].mean((2, 3))
    return (output,)


def adaptive_avg_pool2d_backward(grad_output, height, width):
    """(grad_input,) [batch, channels, height, width]"""
    xp = array_module(grad_output)
    grad_input = xp.zeros((*grad_output.shape[:2], height, width), grad_output.dtype)
    for oh, rows in enumerate(_windows(height, grad_output.shape[2])):
        for ow, cols in enumerate(_windows(width, grad_output.shape[3])):
            count = (rows.stop - rows.start) * (cols.stop - cols.start)
            grad_input[:, :, rows, cols] += (grad_output[:, :, oh, ow] / count)[:, :, None, None]
    return (grad_input,)


def _windows(size, count):
    """From the floor of where each of `count` equal parts begins to the ceiling of where it ends."""
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
