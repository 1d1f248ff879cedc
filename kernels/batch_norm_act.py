"""Batch normalization, residual and activation on GPUs; gradients are in batch_norm_act_backward.py.

Training takes three launches: moments of parts of each channel, their merging, and the output. Partial results are
merged by another kernel in one order: no atomics, the same bits in every run.
"""

import triton
import triton.language as tl

from .batch_norm_act_backward import batch_norm_act_backward
from .channels import (
    channels_of,
    grouped,
    is_channels_last,
    load_channel,
    load_tile,
    store_tile,
    stride_of,
    sum_over,
    tile_at,
    walk_of,
    wide,
)
from .common import COMPILE_OPTIONS, apply_activation, on_device_of

__all__ = ["batch_norm_act_backward", "batch_norm_act_forward"]


@triton.jit
def load_shift(input_ptr, channel, mask, group_stride, col_stride, KEEP_COLS: tl.constexpr):
    """A number of the channel's own size, its first: differences from it keep the digits that a large mean would round
    away."""
    stride = col_stride if KEEP_COLS else group_stride
    return tl.load(input_ptr + channel * stride, mask=mask, other=0).to(tl.float32)


@triton.jit
def batch_norm_moments_kernel(
    input_ptr,
    partial_ptr,
    num_rows,
    num_cols,
    num_channels,
    num_tiles,
    tiles_per_split,
    group_stride,
    row_stride,
    col_stride,
    KEEP_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """(count, mean - shift, m2) [3, splits, channels] of the tiles of each split."""
    block, split = tl.program_id(0), tl.program_id(1)
    group, _, cols, _ = tile_at(block, split, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
    channel, channel_mask = channels_of(group, cols, num_cols, KEEP_COLS)
    shift = load_shift(input_ptr, channel, channel_mask, group_stride, col_stride, KEEP_COLS)
    # Welford's recurrence in each lane: the loop has no reduction across threads, and no large sums to cancel.
    lane_count = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    lane_mean = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    lane_m2 = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    for tile in range(split * tiles_per_split, tl.minimum(num_tiles, (split + 1) * tiles_per_split)):
        group, rows, cols, mask = tile_at(block, tile, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
        d = load_tile(input_ptr, group, rows, cols, mask, group_stride, row_stride, col_stride) - shift
        count = lane_count + 1.0
        delta = d - lane_mean
        mean = lane_mean + delta / count
        lane_m2 = tl.where(mask, lane_m2 + delta * (d - mean), lane_m2)
        lane_mean = tl.where(mask, mean, lane_mean)
        lane_count = tl.where(mask, count, lane_count)
    count = sum_over(lane_count, KEEP_COLS)
    mean = sum_over(lane_mean * lane_count, KEEP_COLS) / tl.maximum(count, 1.0)
    apart = lane_mean - mean
    m2 = sum_over(lane_m2 + lane_count * apart * apart, KEEP_COLS)
    target = partial_ptr + wide(split) * num_channels + channel
    size = wide(tl.num_programs(1)) * num_channels
    tl.store(target, count, mask=channel_mask)
    tl.store(target + size, mean, mask=channel_mask)
    tl.store(target + 2 * size, m2, mask=channel_mask)


@triton.jit
def batch_norm_merge_kernel(
    partial_ptr,
    input_ptr,
    mean_ptr,
    var_ptr,
    shifted_mean_ptr,
    rstd_ptr,
    num_splits,
    num_channels,
    channel_stride,
    eps,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """mean, biased variance, mean - shift and, if wanted, 1 / sqrt(var + eps) of each channel from the moments of its
    splits, in one order."""
    channel = wide(tl.program_id(0)) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    in_channels = channel < num_channels
    size = wide(num_splits) * num_channels
    total = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, num_splits, BLOCK_SPLITS):
        split = (first + tl.arange(0, BLOCK_SPLITS))[:, None]
        mask = (split < num_splits) & in_channels
        source = partial_ptr + split.to(tl.int64) * num_channels + channel
        count = tl.load(source, mask=mask, other=0)
        total += count
        weighted += count * tl.load(source + size, mask=mask, other=0)
    count_in_all = tl.sum(total, axis=0, keep_dims=True)
    mean = tl.sum(weighted, axis=0, keep_dims=True) / tl.maximum(count_in_all, 1.0)
    m2 = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, num_splits, BLOCK_SPLITS):
        split = (first + tl.arange(0, BLOCK_SPLITS))[:, None]
        mask = (split < num_splits) & in_channels
        source = partial_ptr + split.to(tl.int64) * num_channels + channel
        apart = tl.load(source + size, mask=mask, other=0) - mean
        m2 += tl.load(source + 2 * size, mask=mask, other=0) + tl.load(source, mask=mask, other=0) * apart * apart
    var = tl.sum(m2, axis=0, keep_dims=True) / tl.maximum(count_in_all, 1.0)
    shift = tl.load(input_ptr + channel * channel_stride, mask=in_channels, other=0).to(tl.float32)
    tl.store(mean_ptr + channel, mean + shift, mask=in_channels)
    tl.store(var_ptr + channel, var, mask=in_channels)
    tl.store(shifted_mean_ptr + channel, mean, mask=in_channels)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + channel, tl.rsqrt(var + eps), mask=in_channels)


@triton.jit
def batch_norm_output_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    mean_ptr,
    var_ptr,
    output_ptr,
    num_rows,
    num_cols,
    num_channels,
    num_tiles,
    weight_stride,
    bias_stride,
    group_stride,
    row_stride,
    col_stride,
    residual_group_stride,
    residual_row_stride,
    residual_col_stride,
    eps,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEP_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One tile; when TRAINING, mean_ptr holds mean - shift."""
    block, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    group, rows, cols, mask = tile_at(block, tile, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
    channel, channel_mask = channels_of(group, cols, num_cols, KEEP_COLS)
    x = load_tile(input_ptr, group, rows, cols, mask, group_stride, row_stride, col_stride)
    if TRAINING:
        x -= load_shift(input_ptr, channel, channel_mask, group_stride, col_stride, KEEP_COLS)
    x -= load_channel(mean_ptr, channel, channel_mask, 1, 0.0)
    rstd = tl.rsqrt(load_channel(var_ptr, channel, channel_mask, 1, 1.0) + eps)
    y = x * (rstd * load_channel(weight_ptr, channel, channel_mask, weight_stride, 1.0))
    y += load_channel(bias_ptr, channel, channel_mask, bias_stride, 0.0)
    if residual_ptr is not None:
        strides = (residual_group_stride, residual_row_stride, residual_col_stride)
        y += load_tile(residual_ptr, group, rows, cols, mask, strides[0], strides[1], strides[2])
    y = apply_activation(y, ACTIVATION)
    store_tile(output_ptr, y, group, rows, cols, mask, num_channels, num_cols, KEEP_COLS)


def batch_norm_act_forward(
    input, weight, bias, residual, running_mean, running_var, training, eps, activation, output, mean, var
):
    if not training:
        mean.copy_(running_mean)
        var.copy_(running_var)
    elif input.numel() == 0:
        mean.fill_(float("nan"))
        var.fill_(float("nan"))
    if input.numel() == 0:
        return
    channels_last = is_channels_last(input)
    view = grouped(input, channels_last)
    added = None if residual is None else grouped(residual, channels_last)
    groups, rows, cols = view.shape
    walk = walk_of(groups, rows, cols, channels_last, input.device)
    center = mean
    with on_device_of(input):
        if training:
            center = mean.new_empty(mean.shape)
            partial = mean.new_empty((3, walk.splits, len(mean)))
            batch_norm_moments_kernel[(walk.num_blocks, walk.splits)](
                view,
                partial,
                rows,
                cols,
                len(mean),
                walk.num_tiles,
                walk.tiles_per_split,
                *view.stride(),
                **walk.tiles(),
                **COMPILE_OPTIONS,
            )
            batch_norm_merge_kernel[(triton.cdiv(len(mean), 32),)](
                partial,
                view,
                mean,
                var,
                center,
                None,
                walk.splits,
                len(mean),
                view.stride(2) if channels_last else view.stride(0),
                eps,
                BLOCK_SPLITS=32,
                BLOCK_COLS=32,
                num_warps=4,
                **COMPILE_OPTIONS,
            )
        batch_norm_output_kernel[(walk.num_blocks * walk.num_tiles,)](
            view,
            weight,
            bias,
            added,
            center,
            var,
            output,
            rows,
            cols,
            len(mean),
            walk.num_tiles,
            stride_of(weight),
            stride_of(bias),
            *view.stride(),
            *((0, 0, 0) if added is None else added.stride()),
            eps,
            TRAINING=training,
            ACTIVATION=activation,
            **walk.tiles(),
            **COMPILE_OPTIONS,
        )
