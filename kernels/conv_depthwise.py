"""Depthwise convolution, one channel to a group, and the sums of an image's channels: bound by memory, no product."""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, apply_activation, block_size_for_row, num_warps_for
from .conv_axis import splits_of
from .conv_product import gather_offsets, split_pixel


@triton.jit
def depthwise_kernel(
    source_ptr,
    weight_ptr,
    bias_ptr,
    result_ptr,
    num_pixels,
    channels,
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
    weight_channel_stride,
    weight_row_stride,
    weight_col_stride,
    bias_stride,
    result_batch_stride,
    result_channel_stride,
    result_row_stride,
    result_col_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """result = act(source * weight + bias), one channel to a group; a program has a block of pixels and channels."""
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    pixel = (tl.program_id(0) // channel_blocks).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = (tl.program_id(0) % channel_blocks).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    n, y, x = split_pixel(pixel, height, width)
    mask = (pixel < num_pixels)[:, None] & (channel < channels)[None, :]
    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for tap in range(0, taps):
        offsets, inside = gather_offsets(
            y[:, None],
            x[:, None],
            channel[None, :],
            tap // taps_w,
            tap % taps_w,
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
        value = tl.load(source_ptr + n[:, None] * source_batch_stride + offsets, mask=mask & inside, other=0)
        place = channel * weight_channel_stride + tap // taps_w * weight_row_stride + tap % taps_w * weight_col_stride
        scale = tl.load(weight_ptr + place, mask=channel < channels, other=0)
        acc += value.to(tl.float32) * scale.to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + channel * bias_stride, mask=channel < channels, other=0).to(tl.float32)[None, :]
    places = n * result_batch_stride + y * result_row_stride + x * result_col_stride
    result_ptrs = result_ptr + places[:, None] + channel[None, :] * result_channel_stride
    tl.store(result_ptrs, apply_activation(acc, ACTIVATION), mask=mask)


@triton.jit
def depthwise_grad_weight_kernel(
    grad_output_ptr,
    input_ptr,
    sums_ptr,
    num_pixels,
    channels,
    input_height,
    input_width,
    height,
    width,
    taps_w,
    step_h,
    step_w,
    offset_h,
    offset_w,
    tap_offset_h,
    tap_offset_w,
    pixels_per_split,
    grad_batch_stride,
    grad_channel_stride,
    grad_row_stride,
    grad_col_stride,
    input_batch_stride,
    input_channel_stride,
    input_row_stride,
    input_col_stride,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """sums[s, channels, taps] over part s of the pixels; program (i, t, s) has block i of the channels and tap t."""
    channel = tl.program_id(0).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tap, split = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, num_pixels)
    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS).to(tl.int64)
        n, y, x = split_pixel(pixel, height, width)
        mask = (pixel < last)[:, None] & (channel < channels)[None, :]
        grad_offsets = n * grad_batch_stride + y * grad_row_stride + x * grad_col_stride
        grad_ptrs = grad_output_ptr + grad_offsets[:, None] + channel[None, :] * grad_channel_stride
        grad = tl.load(grad_ptrs, mask=mask, other=0).to(tl.float32)
        offsets, inside = gather_offsets(
            y[:, None],
            x[:, None],
            channel[None, :],
            tap // taps_w,
            tap % taps_w,
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
        value = tl.load(input_ptr + n[:, None] * input_batch_stride + offsets, mask=mask & inside, other=0)
        acc += grad * value.to(tl.float32)
    place = (split * channels + channel) * tl.num_programs(1) + tap
    tl.store(sums_ptr + place, tl.sum(acc, axis=0), mask=channel < channels)


@triton.jit
def channel_sums_kernel(
    image_ptr,
    sums_ptr,
    num_pixels,
    channels,
    height,
    width,
    pixels_per_split,
    batch_stride,
    channel_stride,
    row_stride,
    col_stride,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """sums[s, channels] over part s of the pixels; program (i, s) has block i of the channels."""
    channel = tl.program_id(0).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tl.program_id(1).to(tl.int64) * pixels_per_split
    last = tl.minimum(first + pixels_per_split, num_pixels)
    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS).to(tl.int64)
        n, y, x = split_pixel(pixel, height, width)
        offsets = n * batch_stride + y * row_stride + x * col_stride
        mask = (pixel < last)[:, None] & (channel < channels)[None, :]
        image_ptrs = image_ptr + offsets[:, None] + channel[None, :] * channel_stride
        acc += tl.load(image_ptrs, mask=mask, other=0).to(tl.float32)
    place = tl.program_id(1).to(tl.int64) * channels + channel
    tl.store(sums_ptr + place, tl.sum(acc, axis=0), mask=channel < channels)


def depthwise_block_for(pixels, channels, channel_stride):
    """(pixels, channels) of a block: long in the direction in which memory runs."""
    block_channels = block_size_for_row(channels, 64 if channel_stride == 1 else 4)
    return block_size_for_row(pixels, 1024 // block_channels), block_channels


def launch_depthwise(source, weight, bias, activation, geometry, result):
    channels, pixels = source.shape[1], source.shape[0] * geometry.height * geometry.width
    block_pixels, block_channels = depthwise_block_for(pixels, channels, source.stride(1))
    blocks = triton.cdiv(pixels, block_pixels) * triton.cdiv(channels, block_channels)
    depthwise_kernel[(blocks,)](
        source,
        weight,
        bias,
        result,
        pixels,
        channels,
        *geometry,
        *source.stride(),
        weight.stride(0),
        *weight.stride()[2:],
        0 if bias is None else bias.stride(0),
        *result.stride(),
        ACTIVATION=activation,
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps_for(block_pixels * block_channels),
        **COMPILE_OPTIONS,
    )


def launch_depthwise_grad_weight(grad_output, input, geometry, grad_weight):
    channels, pixels = input.shape[1], input.shape[0] * geometry.height * geometry.width
    splits, pixels_per_split = splits_of(pixels)
    sums = torch.empty(splits, channels, geometry.taps, dtype=torch.float32, device=input.device)
    block_pixels, block_channels = depthwise_block_for(pixels_per_split, channels, input.stride(1))
    depthwise_grad_weight_kernel[(triton.cdiv(channels, block_channels), geometry.taps, splits)](
        grad_output,
        input,
        sums,
        pixels,
        channels,
        *geometry[:4],
        *geometry[5:],  # all but the taps, which are programs
        pixels_per_split,
        *grad_output.stride(),
        *input.stride(),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps_for(block_pixels * block_channels),
        **COMPILE_OPTIONS,
    )
    grad_weight.copy_(sums.sum(dim=0).view(grad_weight.shape))


def launch_channel_sums(image, sums):
    batch, channels, height, width = image.shape
    pixels = batch * height * width
    splits, pixels_per_split = splits_of(pixels)
    parts = torch.empty(splits, channels, dtype=torch.float32, device=image.device)
    block_pixels, block_channels = depthwise_block_for(pixels_per_split, channels, image.stride(1))
    channel_sums_kernel[(triton.cdiv(channels, block_channels), splits)](
        image,
        parts,
        pixels,
        channels,
        height,
        width,
        pixels_per_split,
        *image.stride(),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=num_warps_for(block_pixels * block_channels),
        **COMPILE_OPTIONS,
    )
    sums.copy_(parts.sum(dim=0))
