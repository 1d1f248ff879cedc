"""Maxima over windows on GPUs: each lane computes one element, in the order in which results lie in memory.

The backward gathers: an element looks at the windows that hold it, in one order, and takes the gradients of those whose
maximum it was. No atomics: the same bits in every run.
"""

import triton
import triton.language as tl

from .channels import wide
from .common import COMPILE_OPTIONS, INTERPRET, on_device_of

# Elements of a program.
BLOCK = 1024 if INTERPRET else 512


@triton.jit
def places_of(block, channels, height, width, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """(image, channel, row, column) [BLOCK] of the elements of a result, as int64 but for the last two."""
    place = tl.reshape(wide(block) * BLOCK + tl.arange(0, BLOCK)[None, :], (BLOCK,))
    if CHANNELS_LAST:
        channel, place = place % channels, place // channels
        column, place = (place % width).to(tl.int32), place // width
        row, image = (place % height).to(tl.int32), place // height
    else:
        column, place = (place % width).to(tl.int32), place // width
        row, place = (place % height).to(tl.int32), place // height
        channel, image = place % channels, place // channels
    return image, channel, row, column


@triton.jit
def max_pool_kernel(
    input_ptr,
    output_ptr,
    indices_ptr,
    batch,
    channels,
    height,
    width,
    out_h,
    out_w,
    image_stride,
    channel_stride,
    row_stride,
    col_stride,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, channel, oh, ow = places_of(tl.program_id(0), channels, out_h, out_w, CHANNELS_LAST, BLOCK)
    inside = image < batch
    planes = input_ptr + image * image_stride + channel * channel_stride
    top, left = oh * stride_h - pad_h, ow * stride_w - pad_w
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = tl.full((BLOCK,), -1, tl.int32)
    for kh in range(0, kernel_h):
        row = top + kh * dilation_h
        in_rows = inside & (row >= 0) & (row < height)
        for kw in range(0, kernel_w):
            col = left + kw * dilation_w
            mask = in_rows & (col >= 0) & (col < width)
            offsets = row.to(tl.int64) * row_stride + col.to(tl.int64) * col_stride
            value = tl.load(planes + offsets, mask=mask, other=0).to(tl.float32)
            # The first place that is not padding stands for a window of nothing but -inf.
            taken = mask & ((value > best) | (value != value) | (index < 0))
            best = tl.where(taken, value, best)
            index = tl.where(taken, row * width + col, index)
    target = tl.reshape(wide(tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)[None, :], (BLOCK,))
    tl.store(output_ptr + target, best.to(output_ptr.dtype.element_ty), mask=inside)
    tl.store(indices_ptr + target, index, mask=inside)


@triton.jit
def max_pool_backward_kernel(
    grad_ptr,
    indices_ptr,
    grad_input_ptr,
    batch,
    channels,
    height,
    width,
    out_h,
    out_w,
    grad_image_stride,
    grad_channel_stride,
    grad_row_stride,
    grad_col_stride,
    index_image_stride,
    index_channel_stride,
    index_row_stride,
    index_col_stride,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, channel, row, col = places_of(tl.program_id(0), channels, height, width, CHANNELS_LAST, BLOCK)
    inside = image < batch
    grads = grad_ptr + image * grad_image_stride + channel * grad_channel_stride
    indices = indices_ptr + image * index_image_stride + channel * index_channel_stride
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for kh in range(0, kernel_h):
        # The window whose tap kh lies on this row, if there is one.
        from_top = row + pad_h - kh * dilation_h
        oh = from_top // stride_h
        in_rows = inside & (from_top >= 0) & (from_top % stride_h == 0) & (oh < out_h)
        for kw in range(0, kernel_w):
            from_left = col + pad_w - kw * dilation_w
            ow = from_left // stride_w
            mask = in_rows & (from_left >= 0) & (from_left % stride_w == 0) & (ow < out_w)
            oh64, ow64 = oh.to(tl.int64), ow.to(tl.int64)
            index = tl.load(indices + oh64 * index_row_stride + ow64 * index_col_stride, mask=mask, other=-1)
            mask &= index == row * width + col
            grad = tl.load(grads + oh64 * grad_row_stride + ow64 * grad_col_stride, mask=mask, other=0)
            total += grad.to(tl.float32)
    target = tl.reshape(wide(tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)[None, :], (BLOCK,))
    tl.store(grad_input_ptr + target, total.to(grad_input_ptr.dtype.element_ty), mask=inside)


def has_channels_last(result):
    return result.shape[1] > 1 and result.stride(1) == 1


def max_pool2d_forward(
    input,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    ceil_mode,
    output,
    indices,
):
    if output.numel() == 0:
        return
    with on_device_of(input):
        max_pool_kernel[(triton.cdiv(output.numel(), BLOCK),)](
            input,
            output,
            indices,
            *input.shape,
            *output.shape[2:],
            *input.stride(),
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            CHANNELS_LAST=has_channels_last(output),
            BLOCK=BLOCK,
            num_warps=4,
            **COMPILE_OPTIONS,
        )


def max_pool2d_backward(
    grad_output,
    indices,
    height,
    width,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    grad_input,
):
    if grad_input.numel() == 0:
        return
    with on_device_of(grad_output):
        max_pool_backward_kernel[(triton.cdiv(grad_input.numel(), BLOCK),)](
            grad_output,
            indices,
            grad_input,
            *grad_input.shape,
            *indices.shape[2:],
            *grad_output.stride(),
            *indices.stride(),
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            CHANNELS_LAST=has_channels_last(grad_input),
            BLOCK=BLOCK,
            num_warps=4,
            **COMPILE_OPTIONS,
        )
