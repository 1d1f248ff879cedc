"""Gradients of batch normalization on GPUs: sums over parts of each channel, their merging, and the gradients.

With d = x - mean and g the gradient that passed the activation, the sums are those of d, g and g * d. The forward
stored a rounded mean; the sum of d says by how much, and is taken away again.
"""

import triton
import triton.language as tl

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
from .common import COMPILE_OPTIONS, apply_activation_backward, on_device_of


@triton.jit
def load_passed(grad_ptr, output_ptr, group, rows, cols, mask, grad_strides, output_strides, ACTIVATION: tl.constexpr):
    """fp32 gradient that passed the activation."""
    grad = load_tile(grad_ptr, group, rows, cols, mask, grad_strides[0], grad_strides[1], grad_strides[2])
    if output_ptr is not None:
        strides = output_strides
        output = load_tile(output_ptr, group, rows, cols, mask, strides[0], strides[1], strides[2])
        grad = apply_activation_backward(grad, output, ACTIVATION)
    return grad


@triton.jit
def batch_norm_sums_kernel(
    grad_ptr,
    input_ptr,
    output_ptr,
    mean_ptr,
    partial_ptr,
    num_rows,
    num_cols,
    num_channels,
    num_tiles,
    tiles_per_split,
    grad_group_stride,
    grad_row_stride,
    grad_col_stride,
    input_group_stride,
    input_row_stride,
    input_col_stride,
    output_group_stride,
    output_row_stride,
    output_col_stride,
    mean_stride,
    ACTIVATION: tl.constexpr,
    KEEP_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Sums of (d, g, g * d) [3, splits, channels] over the tiles of each split."""
    block, split = tl.program_id(0), tl.program_id(1)
    group, _, cols, _ = tile_at(block, split, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
    channel, channel_mask = channels_of(group, cols, num_cols, KEEP_COLS)
    mean = load_channel(mean_ptr, channel, channel_mask, mean_stride, 0.0)
    grad_strides = (grad_group_stride, grad_row_stride, grad_col_stride)
    output_strides = (output_group_stride, output_row_stride, output_col_stride)
    sum_d = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    sum_g = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    sum_gd = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    for tile in range(split * tiles_per_split, tl.minimum(num_tiles, (split + 1) * tiles_per_split)):
        group, rows, cols, mask = tile_at(block, tile, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
        x = load_tile(input_ptr, group, rows, cols, mask, input_group_stride, input_row_stride, input_col_stride)
        g = load_passed(grad_ptr, output_ptr, group, rows, cols, mask, grad_strides, output_strides, ACTIVATION)
        d = tl.where(mask, x - mean, 0.0)
        sum_d += d
        sum_g += g
        sum_gd += g * d
    target = partial_ptr + wide(split) * num_channels + channel
    size = wide(tl.num_programs(1)) * num_channels
    tl.store(target, sum_over(sum_d, KEEP_COLS), mask=channel_mask)
    tl.store(target + size, sum_over(sum_g, KEEP_COLS), mask=channel_mask)
    tl.store(target + 2 * size, sum_over(sum_gd, KEEP_COLS), mask=channel_mask)


@triton.jit
def batch_norm_merge_sums_kernel(
    partial_ptr,
    var_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    slopes_ptr,
    num_splits,
    num_channels,
    num_elements,
    var_stride,
    eps,
    TRAINING: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The parameters' gradients, and (mean of d, mean of g, mean of g * n * rstd) [3, channels] of each channel."""
    channel = wide(tl.program_id(0)) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    in_channels = channel < num_channels
    size = wide(num_splits) * num_channels
    sum_d = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    sum_g = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    sum_gd = tl.zeros((BLOCK_SPLITS, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, num_splits, BLOCK_SPLITS):
        split = (first + tl.arange(0, BLOCK_SPLITS))[:, None]
        mask = (split < num_splits) & in_channels
        source = partial_ptr + split.to(tl.int64) * num_channels + channel
        sum_d += tl.load(source, mask=mask, other=0)
        sum_g += tl.load(source + size, mask=mask, other=0)
        sum_gd += tl.load(source + 2 * size, mask=mask, other=0)
    g = tl.sum(sum_g, axis=0, keep_dims=True)
    gd = tl.sum(sum_gd, axis=0, keep_dims=True)
    rstd = tl.rsqrt(tl.load(var_ptr + channel * var_stride, mask=in_channels, other=0).to(tl.float32) + eps)
    if TRAINING:
        rest = tl.sum(sum_d, axis=0, keep_dims=True) / num_elements
        gd -= rest * g
        tl.store(slopes_ptr + channel, rest, mask=in_channels)
        tl.store(slopes_ptr + num_channels + channel, g / num_elements, mask=in_channels)
        tl.store(slopes_ptr + 2 * num_channels + channel, gd * rstd * rstd / num_elements, mask=in_channels)
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + channel, (gd * rstd).to(grad_weight_ptr.dtype.element_ty), mask=in_channels)
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + channel, g.to(grad_bias_ptr.dtype.element_ty), mask=in_channels)


@triton.jit
def batch_norm_gradient_kernel(
    grad_ptr,
    input_ptr,
    output_ptr,
    weight_ptr,
    mean_ptr,
    var_ptr,
    slopes_ptr,
    grad_input_ptr,
    grad_residual_ptr,
    num_rows,
    num_cols,
    num_channels,
    num_tiles,
    grad_group_stride,
    grad_row_stride,
    grad_col_stride,
    input_group_stride,
    input_row_stride,
    input_col_stride,
    output_group_stride,
    output_row_stride,
    output_col_stride,
    weight_stride,
    mean_stride,
    var_stride,
    eps,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEP_COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One tile of the gradients of input and residual."""
    block, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    group, rows, cols, mask = tile_at(block, tile, num_rows, num_cols, KEEP_COLS, BLOCK_ROWS, BLOCK_COLS)
    channel, channel_mask = channels_of(group, cols, num_cols, KEEP_COLS)
    grad_strides = (grad_group_stride, grad_row_stride, grad_col_stride)
    output_strides = (output_group_stride, output_row_stride, output_col_stride)
    g = load_passed(grad_ptr, output_ptr, group, rows, cols, mask, grad_strides, output_strides, ACTIVATION)
    if grad_residual_ptr is not None:
        store_tile(grad_residual_ptr, g, group, rows, cols, mask, num_channels, num_cols, KEEP_COLS)
    if grad_input_ptr is not None:
        rstd = tl.rsqrt(load_channel(var_ptr, channel, channel_mask, var_stride, 1.0) + eps)
        scale = rstd * load_channel(weight_ptr, channel, channel_mask, weight_stride, 1.0)
        if TRAINING:
            x = load_tile(input_ptr, group, rows, cols, mask, input_group_stride, input_row_stride, input_col_stride)
            d = x - load_channel(mean_ptr, channel, channel_mask, mean_stride, 0.0)
            d -= load_channel(slopes_ptr, channel, channel_mask, 1, 0.0)
            g -= load_channel(slopes_ptr + num_channels, channel, channel_mask, 1, 0.0)
            g -= d * load_channel(slopes_ptr + 2 * num_channels, channel, channel_mask, 1, 0.0)
        store_tile(grad_input_ptr, g * scale, group, rows, cols, mask, num_channels, num_cols, KEEP_COLS)


def batch_norm_act_backward(
    grad_output,
    input,
    weight,
    bias,
    mean,
    var,
    output,
    training,
    eps,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    needs_residual_grad,
    grad_input,
    grad_weight,
    grad_bias,
    grad_residual,
):
    if input.numel() == 0:
        for grad, needed in ((grad_weight, needs_weight_grad), (grad_bias, needs_bias_grad)):
            if needed:
                grad.zero_()
        return
    channels_last = is_channels_last(input)
    view, grads = grouped(input, channels_last), grouped(grad_output, channels_last)
    saved = None if output is None else grouped(output, channels_last)
    groups, rows, cols = view.shape
    walk = walk_of(groups, rows, cols, channels_last, input.device)
    strides = (*grads.stride(), *view.stride(), *((0, 0, 0) if saved is None else saved.stride()))
    activation = "none" if output is None else "relu"
    slopes = mean.new_empty((3, len(mean)))
    with on_device_of(input):
        if needs_weight_grad or needs_bias_grad or (training and needs_input_grad):
            partial = mean.new_empty((3, walk.splits, len(mean)))
            batch_norm_sums_kernel[(walk.num_blocks, walk.splits)](
                grads,
                view,
                saved,
                mean,
                partial,
                rows,
                cols,
                len(mean),
                walk.num_tiles,
                walk.tiles_per_split,
                *strides,
                mean.stride(0),
                ACTIVATION=activation,
                **walk.tiles(),
                **COMPILE_OPTIONS,
            )
            batch_norm_merge_sums_kernel[(triton.cdiv(len(mean), 32),)](
                partial,
                var,
                grad_weight if needs_weight_grad else None,
                grad_bias if needs_bias_grad else None,
                slopes,
                walk.splits,
                len(mean),
                float(rows * cols if not channels_last else rows),
                var.stride(0),
                eps,
                TRAINING=training,
                BLOCK_SPLITS=32,
                BLOCK_COLS=32,
                num_warps=4,
                **COMPILE_OPTIONS,
            )
        if needs_input_grad or needs_residual_grad:
            batch_norm_gradient_kernel[(walk.num_blocks * walk.num_tiles,)](
                grads,
                view,
                saved,
                weight,
                mean,
                var,
                slopes,
                grad_input if needs_input_grad else None,
                grad_residual if needs_residual_grad else None,
                rows,
                cols,
                len(mean),
                walk.num_tiles,
                *strides,
                stride_of(weight),
                mean.stride(0),
                var.stride(0),
                eps,
                TRAINING=training,
                ACTIVATION=activation,
                **walk.tiles(),
                **COMPILE_OPTIONS,
            )
