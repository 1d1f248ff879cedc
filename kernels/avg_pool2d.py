"""Averages over sliding windows on GPUs: the kernel is in average_pool.py."""

import triton

from .average_pool import launch


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
    output,
):
    windows = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)
    launch(input, output, windows, count_include_pad, divisor_override, (kernel_h, kernel_w), False)


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
    grad_input,
):
    windows = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)
    extents = (triton.cdiv(kernel_h, stride_h), triton.cdiv(kernel_w, stride_w))
    launch(grad_output, grad_input, windows, count_include_pad, divisor_override, extents, True)
