"""The products of a convolution and of its weights' gradient, whose image side is gathered tile by tile, never stored.

A row of the product is a pixel of the result, a column one of its channels; the depth counts the taps and, for each of
them, the channels of the source. In the weights' gradient pixels are the depth.
"""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, apply_activation, arch_of, num_multiprocessors
from .conv_axis import splits_of
from .linear_act import GROUP_M, MatmulTile, matmul_tile_for, tile_of_program


@triton.jit
def split_pixel(pixel, height, width):
    """(image, row, column) of a pixel that is counted through all images."""
    row = pixel // width
    return row // height, row % height, pixel % width


@triton.jit
def gather_offsets(
    y,
    x,
    channel,
    tap_h,
    tap_w,
    source_height,
    source_width,
    step_h,
    step_w,
    offset_h,
    offset_w,
    tap_offset_h,
    tap_offset_w,
    channel_stride,
    row_stride,
    col_stride,
):
    """(offsets into an image, whether they lie inside) of what pixel (y, x) and a tap meet; int64, shapes broadcast."""
    row = y * step_h + offset_h + tap_h * tap_offset_h
    col = x * step_w + offset_w + tap_w * tap_offset_w
    inside = (row >= 0) & (row < source_height) & (col >= 0) & (col < source_width)
    return channel * channel_stride + row * row_stride + col * col_stride, inside


@triton.jit
def conv2d_kernel(
    source_ptr,
    weight_ptr,
    bias_ptr,
    result_ptr,
    M,
    source_channels,
    result_channels,
    source_height,
    source_width,
    height,
    width,
    taps,
    taps_w,
    step_h,
    step_w,
    offset_h,
    offset_w,
    tap_offset_h,
    tap_offset_w,
    source_batch_stride,
    source_channel_stride,
    source_row_stride,
    source_col_stride,
    weight_group_stride,
    weight_result_stride,
    weight_source_stride,
    weight_row_stride,
    weight_col_stride,
    bias_stride,
    result_batch_stride,
    result_channel_stride,
    result_row_stride,
    result_col_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    TAP_PER_BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """result = act(source * weight + bias) for the M pixels of one axis pair; program (i, g) has tile i of group g.

    TAP_PER_BLOCK: the channels are a multiple of BLOCK_K, so a block stays within one tap and reads run on.
    """
    tile_m, tile_n = tile_of_program(M, result_channels, BLOCK_M, BLOCK_N, GROUP_M)
    group = tl.program_id(1).to(tl.int64)
    pixels = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, y, x = split_pixel(pixels, height, width)
    source_ptrs = source_ptr + group * source_channels * source_channel_stride + n[:, None] * source_batch_stride
    weight_ptrs = weight_ptr + group * weight_group_stride + cols[None, :] * weight_result_stride
    row_mask, col_mask = (pixels < M)[:, None], (cols < result_channels)[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, taps * source_channels, BLOCK_K):
        if TAP_PER_BLOCK:
            tap = first // source_channels
            channel = (first % source_channels + tl.arange(0, BLOCK_K)).to(tl.int64)
            k_mask = channel >= 0
        else:
            k = first + tl.arange(0, BLOCK_K)
            tap = k // source_channels
            channel = (k % source_channels).to(tl.int64)
            k_mask = tap < taps
        tap_h, tap_w = tap // taps_w, tap % taps_w
        if not TAP_PER_BLOCK:
            tap_h, tap_w = tap_h[None, :], tap_w[None, :]
        offsets, inside = gather_offsets(
            y[:, None],
            x[:, None],
            channel[None, :],
            tap_h,
            tap_w,
            source_height,
            source_width,
            step_h,
            step_w,
            offset_h,
            offset_w,
            tap_offset_h,
            tap_offset_w,
            source_channel_stride,
            source_row_stride,
            source_col_stride,
        )
        a = tl.load(source_ptrs + offsets, mask=row_mask & inside & k_mask[None, :], other=0)  # [BLOCK_M, BLOCK_K]
        if TAP_PER_BLOCK:
            weight_offsets = channel * weight_source_stride + tap_h * weight_row_stride + tap_w * weight_col_stride
        else:
            tap_h, tap_w = tap // taps_w, tap % taps_w
            weight_offsets = channel * weight_source_stride + tap_h * weight_row_stride + tap_w * weight_col_stride
        b = tl.load(weight_ptrs + weight_offsets[:, None], mask=k_mask[:, None] & col_mask, other=0)
        if UPCAST:  # triton's interpreter multiplies the bit patterns of bf16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float32)

    channels = group * result_channels + cols
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + channels * bias_stride, mask=cols < result_channels, other=0).to(tl.float32)[None, :]
    places = n * result_batch_stride + y * result_row_stride + x * result_col_stride
    result_ptrs = result_ptr + places[:, None] + channels[None, :] * result_channel_stride
    tl.store(result_ptrs, apply_activation(acc, ACTIVATION), mask=row_mask & col_mask)


@triton.jit
def conv2d_grad_weight_kernel(
    grad_output_ptr,
    input_ptr,
    sums_ptr,
    num_pixels,
    channels,
    rows,
    input_height,
    input_width,
    height,
    width,
    taps,
    taps_w,
    step_h,
    step_w,
    offset_h,
    offset_w,
    tap_offset_h,
    tap_offset_w,
    pixels_per_split,
    num_groups,
    grad_batch_stride,
    grad_channel_stride,
    grad_row_stride,
    grad_col_stride,
    input_batch_stride,
    input_channel_stride,
    input_row_stride,
    input_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums[s, g, rows, taps * channels] over part s of the pixels; program (i, g, s) has tile i of group g."""
    N = taps * channels
    tile_m, tile_n = tile_of_program(rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    group, split = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    tap, channel = col // channels, col % channels
    tap_h, tap_w = tap // taps_w, tap % taps_w
    grad_ptrs = grad_output_ptr + (group * rows + row)[:, None] * grad_channel_stride
    input_ptrs = input_ptr + group * channels * input_channel_stride
    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, num_pixels)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, last, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K).to(tl.int64)
        n, y, x = split_pixel(pixel, height, width)
        grad_offsets = n * grad_batch_stride + y * grad_row_stride + x * grad_col_stride
        grad_mask = (row < rows)[:, None] & (pixel < last)[None, :]
        a = tl.load(grad_ptrs + grad_offsets[None, :], mask=grad_mask, other=0)  # [BLOCK_M, BLOCK_K]
        offsets, inside = gather_offsets(
            y[:, None],
            x[:, None],
            channel[None, :],
            tap_h[None, :],
            tap_w[None, :],
            input_height,
            input_width,
            step_h,
            step_w,
            offset_h,
            offset_w,
            tap_offset_h,
            tap_offset_w,
            input_channel_stride,
            input_row_stride,
            input_col_stride,
        )
        mask = inside & (pixel < last)[:, None] & (col < N)[None, :]
        b = tl.load(input_ptrs + n[:, None] * input_batch_stride + offsets, mask=mask, other=0)  # [BLOCK_K, BLOCK_N]
        if UPCAST:  # triton's interpreter multiplies the bit patterns of bf16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float32)
    offsets = ((split * num_groups + group) * rows + row)[:, None] * N + col[None, :]
    tl.store(sums_ptr + offsets, acc, mask=(row < rows)[:, None] & (col < N)[None, :])


def conv_tile_for(M, N, K, element_size, device, num_groups):
    """A product's tile, no wider than a group's few channels need; 16 is the least that a matrix unit takes."""
    num_programs = max(num_multiprocessors(device) // num_groups, 1)
    tile = matmul_tile_for(M, N, element_size, "relu", arch_of(device), num_programs)
    narrow = lambda size, most: min(max(triton.next_power_of_2(size), 16), most)  # noqa: E731
    # Gathering takes more registers than reading a matrix: smaller tiles, above all for fp32, whose products take most.
    block_m, widest, deepest = (min(tile.block_m, 64), 32, 16) if element_size == 4 else (tile.block_m, 128, 64)
    block_n, block_k = narrow(N, min(tile.block_n, widest)), narrow(K, deepest)
    num_warps = min(tile.num_warps, 4) if element_size == 4 else tile.num_warps
    return MatmulTile(block_m, block_n, block_k, num_warps, min(tile.num_stages, 3))


def launch_product(source, weight, result_dim, bias, activation, groups, geometry, result):
    """result_dim: the dimension of weight, 0 or 1, that counts the result's channels."""
    pixels = source.shape[0] * geometry.height * geometry.width
    source_channels, result_channels = source.shape[1] // groups, result.shape[1] // groups
    # One tap at a time where its channels fill whole blocks; else a block of many taps, whose places take registers.
    whole = source_channels & -source_channels
    depth = whole if whole >= 16 else min(geometry.taps * source_channels, 32)
    tile = conv_tile_for(pixels, result_channels, depth, source.element_size(), source.device, groups)
    tiles = triton.cdiv(pixels, tile.block_m) * triton.cdiv(result_channels, tile.block_n)
    conv2d_kernel[(tiles, groups)](
        source,
        weight,
        bias,
        result,
        pixels,
        source_channels,
        result_channels,
        *geometry,
        *source.stride(),
        weight.shape[0] // groups * weight.stride(0),
        weight.stride(result_dim),
        weight.stride(1 - result_dim),
        *weight.stride()[2:],
        0 if bias is None else bias.stride(0),
        *result.stride(),
        ACTIVATION=activation,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        TAP_PER_BLOCK=source_channels % tile.block_k == 0,
        UPCAST=INTERPRET,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **COMPILE_OPTIONS,
    )


def launch_product_grad_weight(grad_output, input, groups, geometry, grad_weight):
    taps, kernel_size = geometry.taps, grad_weight.shape[2:]
    pixels = input.shape[0] * geometry.height * geometry.width
    splits, pixels_per_split = splits_of(pixels)
    rows, channels = grad_weight.shape[0] // groups, grad_weight.shape[1]
    sums = torch.empty(splits, groups, rows, taps * channels, dtype=torch.float32, device=input.device)
    tile = conv_tile_for(rows, taps * channels, pixels_per_split, input.element_size(), input.device, groups * splits)
    # Both sides are gathered anew for each block: a third stage's places would spill.
    num_stages = min(tile.num_stages, 2) if input.element_size() == 4 else tile.num_stages
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(taps * channels, tile.block_n)
    conv2d_grad_weight_kernel[(tiles, groups, splits)](
        grad_output,
        input,
        sums,
        pixels,
        channels,
        rows,
        *geometry,
        pixels_per_split,
        groups,
        *grad_output.stride(),
        *input.stride(),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        UPCAST=INTERPRET,
        num_warps=tile.num_warps,
        num_stages=num_stages,
        **COMPILE_OPTIONS,
    )
    # [groups * rows, kernel_h, kernel_w, channels]: one order of summation, unlike atomics
    total = sums.sum(dim=0).view(groups * rows, *kernel_size, channels)
    grad_weight.copy_(total.permute(0, 3, 1, 2))
