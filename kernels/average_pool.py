"""Averages over windows on GPUs, forward and backward, for avg_pool2d and adaptive_avg_pool2d.

Each lane sums what belongs to one element of the result, in one order: the inputs inside a window or, in the backward,
the windows that hold an input. No atomics: the same bits in every run.
"""

import triton
import triton.language as tl

from .channels import wide
from .common import COMPILE_OPTIONS, on_device_of
from .max_pool2d import BLOCK, has_channels_last, places_of


@triton.jit
def inside(window, size, count, kernel, stride, pad, INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr):
    """([begin, end) of the elements in a window, how many it is divided by) along one axis"""
    if ADAPTIVE:
        begin, end = window * size // count, ((window + 1) * size + count - 1) // count
        divisor = end - begin
    else:
        start = window * stride - pad
        stop = tl.minimum(start + kernel, size + pad)
        begin, end = tl.maximum(start, 0), tl.minimum(stop, size)
        divisor = stop - start if INCLUDE_PAD else end - begin
    return begin, end, divisor


@triton.jit
def holding(place, size, count, kernel, stride, pad, ADAPTIVE: tl.constexpr):
    """[begin, end) of the windows that hold an element along one axis"""
    if ADAPTIVE:
        begin, end = place * count // size, ((place + 1) * count + size - 1) // size
    else:
        begin = (tl.maximum(place + pad - kernel + 1, 0) + stride - 1) // stride
        end = tl.minimum((place + pad) // stride + 1, count)
    return begin, end


@triton.jit
def average_pool_kernel(
    source_ptr,
    target_ptr,
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
    divisor_override,
    max_rows,
    max_cols,
    INCLUDE_PAD: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    BACKWARD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """height x width is the input's size and out_h x out_w that of the windows, in both directions; at most max_rows by
    max_cols elements belong to one result."""
    target_h = height if BACKWARD else out_h
    target_w = width if BACKWARD else out_w
    image, channel, row, col = places_of(tl.program_id(0), channels, target_h, target_w, CHANNELS_LAST, BLOCK)
    mask = image < batch
    planes = source_ptr + image * image_stride + channel * channel_stride
    if BACKWARD:
        row_begin, row_end = holding(row, height, out_h, kernel_h, stride_h, pad_h, ADAPTIVE)
        col_begin, col_end = holding(col, width, out_w, kernel_w, stride_w, pad_w, ADAPTIVE)
    else:
        row_begin, row_end, rows = inside(row, height, out_h, kernel_h, stride_h, pad_h, INCLUDE_PAD, ADAPTIVE)
        col_begin, col_end, cols = inside(col, width, out_w, kernel_w, stride_w, pad_w, INCLUDE_PAD, ADAPTIVE)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, max_rows):
        h = row_begin + i
        # Rows are summed apart: a float that has grown large drops what is small.
        row_total = tl.zeros((BLOCK,), dtype=tl.float32)
        for j in range(0, max_cols):
            w = col_begin + j
            held = mask & (h < row_end) & (w < col_end)
            offsets = h.to(tl.int64) * row_stride + w.to(tl.int64) * col_stride
            value = tl.load(planes + offsets, mask=held, other=0).to(tl.float32)
            if BACKWARD and not HAS_DIVISOR:
                _, _, rows = inside(h, height, out_h, kernel_h, stride_h, pad_h, INCLUDE_PAD, ADAPTIVE)
                _, _, cols = inside(w, width, out_w, kernel_w, stride_w, pad_w, INCLUDE_PAD, ADAPTIVE)
                value = tl.where(held, value / tl.where(held, rows * cols, 1).to(tl.float32), 0.0)
            row_total += value
        total += row_total
    if HAS_DIVISOR:
        total /= divisor_override
    elif not BACKWARD:
        total /= (rows * cols).to(tl.float32)
    target = tl.reshape(wide(tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)[None, :], (BLOCK,))
    tl.store(target_ptr + target, total.to(target_ptr.dtype.element_ty), mask=mask)


def launch(source, target, windows, include_pad, divisor_override, extents, backward):
    """windows: (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w), None where they are adaptive; extents: most rows
    and columns of the source that one result sums."""
    if target.numel() == 0:
        return
    sizes = (*target.shape[2:], *source.shape[2:]) if backward else (*source.shape[2:], *target.shape[2:])
    with on_device_of(source):
        average_pool_kernel[(triton.cdiv(target.numel(), BLOCK),)](
            source,
            target,
            *target.shape[:2],
            *sizes,
            *source.stride(),
            *(windows or (1,) * 6),
            float(divisor_override),
            *extents,
            INCLUDE_PAD=include_pad,
            HAS_DIVISOR=divisor_override != 0,
            ADAPTIVE=windows is None,
            BACKWARD=backward,
            CHANNELS_LAST=has_channels_last(target),
            BLOCK=BLOCK,
            num_warps=4,
            **COMPILE_OPTIONS,
        )
