"""Group normalization on GPUs: the moments of batch_norm_act.py with a group of an image as a channel, then planes with
one weight each.

Planes are rows of a matrix [batch * channels, positions], and `planes` of them make a group. Their sums in the backward
are merged by other kernels in one order: no atomics, the same bits in every run.
"""

import triton
import triton.language as tl

from .batch_norm_act import batch_norm_merge_kernel, batch_norm_moments_kernel
from .channels import TILE, load_channel, stride_of, walk_of, wide
from .common import COMPILE_OPTIONS, block_size_for_row, num_warps_for, on_device_of


def plane_tile_for(num_planes, positions):
    """(planes, positions) of a tile: small planes share a program."""
    block_cols = block_size_for_row(positions, TILE)
    return block_size_for_row(num_planes, max(TILE // block_cols, 1)), block_cols


@triton.jit
def planes_at(block, num_planes, num_channels, planes, BLOCK_ROWS: tl.constexpr):
    """(plane, its channel, its group, mask), [BLOCK_ROWS, 1] as int64"""
    plane = wide(block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    return plane, plane % num_channels, plane // planes, plane < num_planes


@triton.jit
def group_norm_output_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    center_ptr,
    rstd_ptr,
    output_ptr,
    num_planes,
    positions,
    num_channels,
    planes,
    col_tiles,
    weight_stride,
    bias_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One tile; center_ptr holds the mean of each group less the group's first element."""
    block, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    plane, channel, group, in_planes = planes_at(block, num_planes, num_channels, planes, BLOCK_ROWS)
    cols = (col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS))[None, :]
    mask = in_planes & (cols < positions)
    x = tl.load(input_ptr + plane * positions + cols, mask=mask, other=0).to(tl.float32)
    x -= tl.load(input_ptr + group * planes * positions, mask=in_planes, other=0).to(tl.float32)
    x -= tl.load(center_ptr + group, mask=in_planes, other=0)
    scale = tl.load(rstd_ptr + group, mask=in_planes, other=0)
    scale *= load_channel(weight_ptr, channel, in_planes, weight_stride, 1.0)
    y = x * scale + load_channel(bias_ptr, channel, in_planes, bias_stride, 0.0)
    tl.store(output_ptr + plane * positions + cols, y.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_sums_kernel(
    grad_ptr,
    input_ptr,
    mean_ptr,
    sums_ptr,
    num_planes,
    positions,
    num_channels,
    planes,
    grad_batch_stride,
    grad_channel_stride,
    grad_position_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Sums of (d, g, g * d) [3, planes in all] over each plane, with d = x - mean."""
    plane, channel, group, in_planes = planes_at(tl.program_id(0), num_planes, num_channels, planes, BLOCK_ROWS)
    mean = tl.load(mean_ptr + group, mask=in_planes, other=0)
    grads = grad_ptr + plane // num_channels * grad_batch_stride + channel * grad_channel_stride
    sum_d = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    sum_g = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    sum_gd = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, positions, BLOCK_COLS):
        cols = (first + tl.arange(0, BLOCK_COLS))[None, :]
        mask = in_planes & (cols < positions)
        x = tl.load(input_ptr + plane * positions + cols, mask=mask, other=0).to(tl.float32)
        g = tl.load(grads + cols.to(tl.int64) * grad_position_stride, mask=mask, other=0).to(tl.float32)
        d = tl.where(mask, x - mean, 0.0)
        sum_d += d
        sum_g += g
        sum_gd += g * d
    size = wide(num_planes)
    tl.store(sums_ptr + plane, tl.sum(sum_d, axis=1, keep_dims=True), mask=in_planes)
    tl.store(sums_ptr + size + plane, tl.sum(sum_g, axis=1, keep_dims=True), mask=in_planes)
    tl.store(sums_ptr + 2 * size + plane, tl.sum(sum_gd, axis=1, keep_dims=True), mask=in_planes)


@triton.jit
def group_norm_slopes_kernel(
    sums_ptr,
    weight_ptr,
    rstd_ptr,
    slopes_ptr,
    num_groups_in_all,
    num_groups,
    planes,
    positions,
    weight_stride,
    BLOCK_PLANES: tl.constexpr,
):
    """(mean of d, rstd * mean of w g, rstd^3 * mean of w g d) [3, groups in all] of each group, one a program."""
    group = wide(tl.program_id(0))
    size = wide(num_groups_in_all) * planes
    sum_d = tl.zeros((1, BLOCK_PLANES), dtype=tl.float32)
    sum_g = tl.zeros((1, BLOCK_PLANES), dtype=tl.float32)
    sum_gd = tl.zeros((1, BLOCK_PLANES), dtype=tl.float32)
    for first in range(0, planes, BLOCK_PLANES):
        plane = (first + tl.arange(0, BLOCK_PLANES))[None, :]
        mask = plane < planes
        source = sums_ptr + group * planes + plane
        weight = load_channel(weight_ptr, group % num_groups * planes + plane, mask, weight_stride, 1.0)
        sum_d += tl.load(source, mask=mask, other=0)
        sum_g += weight * tl.load(source + size, mask=mask, other=0)
        sum_gd += weight * tl.load(source + 2 * size, mask=mask, other=0)
    count = planes * positions * 1.0
    rstd = tl.load(rstd_ptr + group)
    rest = tl.sum(sum_d, axis=1, keep_dims=True) / count
    g = tl.sum(sum_g, axis=1, keep_dims=True)
    gd = tl.sum(sum_gd, axis=1, keep_dims=True) - rest * g
    tl.store(slopes_ptr + group, rest)
    tl.store(slopes_ptr + num_groups_in_all + group, rstd * g / count)
    tl.store(slopes_ptr + 2 * num_groups_in_all + group, rstd * rstd * rstd * gd / count)


@triton.jit
def group_norm_parameters_kernel(
    sums_ptr,
    slopes_ptr,
    rstd_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    batch,
    num_channels,
    planes,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The gradients of weight and bias, added up over the images."""
    channel = wide(tl.program_id(0)) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    size = wide(batch) * num_channels
    sum_weight = tl.zeros((BLOCK_BATCH, BLOCK_COLS), dtype=tl.float32)
    sum_bias = tl.zeros((BLOCK_BATCH, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, batch, BLOCK_BATCH):
        n = wide(first) + tl.arange(0, BLOCK_BATCH)[:, None]
        mask = (n < batch) & (channel < num_channels)
        plane = n * num_channels + channel
        g = tl.load(sums_ptr + size + plane, mask=mask, other=0)
        gd = tl.load(sums_ptr + 2 * size + plane, mask=mask, other=0)
        rest = tl.load(slopes_ptr + plane // planes, mask=mask, other=0)
        sum_weight += (gd - rest * g) * tl.load(rstd_ptr + plane // planes, mask=mask, other=0)
        sum_bias += g
    in_channels = channel < num_channels
    if grad_weight_ptr is not None:
        grad_weight = tl.sum(sum_weight, axis=0, keep_dims=True).to(grad_weight_ptr.dtype.element_ty)
        tl.store(grad_weight_ptr + channel, grad_weight, mask=in_channels)
    if grad_bias_ptr is not None:
        grad_bias = tl.sum(sum_bias, axis=0, keep_dims=True).to(grad_bias_ptr.dtype.element_ty)
        tl.store(grad_bias_ptr + channel, grad_bias, mask=in_channels)


@triton.jit
def group_norm_gradient_kernel(
    grad_ptr,
    input_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    slopes_ptr,
    grad_input_ptr,
    num_planes,
    positions,
    num_channels,
    planes,
    col_tiles,
    grad_batch_stride,
    grad_channel_stride,
    grad_position_stride,
    weight_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One tile of the gradient of the input."""
    block, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    plane, channel, group, in_planes = planes_at(block, num_planes, num_channels, planes, BLOCK_ROWS)
    cols = (col_tile * BLOCK_COLS + tl.arange(0, BLOCK_COLS))[None, :]
    mask = in_planes & (cols < positions)
    grads = grad_ptr + plane // num_channels * grad_batch_stride + channel * grad_channel_stride
    g = tl.load(grads + cols.to(tl.int64) * grad_position_stride, mask=mask, other=0).to(tl.float32)
    x = tl.load(input_ptr + plane * positions + cols, mask=mask, other=0).to(tl.float32)
    size = wide(num_planes) // planes
    d = x - tl.load(mean_ptr + group, mask=in_planes, other=0) - tl.load(slopes_ptr + group, mask=in_planes, other=0)
    scale = tl.load(rstd_ptr + group, mask=in_planes, other=0)
    scale *= load_channel(weight_ptr, channel, in_planes, weight_stride, 1.0)
    gradient = g * scale - tl.load(slopes_ptr + size + group, mask=in_planes, other=0)
    gradient -= d * tl.load(slopes_ptr + 2 * size + group, mask=in_planes, other=0)
    target = grad_input_ptr + plane * positions + cols
    tl.store(target, gradient.to(grad_input_ptr.dtype.element_ty), mask=mask)


def group_norm_forward(input, weight, bias, num_groups, eps, output, mean, rstd):
    if input.numel() == 0:
        mean.fill_(float("nan"))
        rstd.fill_(float("nan"))
        return
    input = input.contiguous()
    batch, channels, positions = input.shape
    planes = channels // num_groups
    view = input.view(batch * num_groups, 1, planes * positions)
    walk = walk_of(*view.shape, False, input.device)
    center, var = mean.new_empty((2, batch * num_groups))
    partial = mean.new_empty((3, walk.splits, len(center)))
    block_rows, block_cols = plane_tile_for(batch * channels, positions)
    col_tiles = triton.cdiv(positions, block_cols)
    with on_device_of(input):
        batch_norm_moments_kernel[(walk.num_blocks, walk.splits)](
            view,
            partial,
            1,
            planes * positions,
            len(center),
            walk.num_tiles,
            walk.tiles_per_split,
            *view.stride(),
            **walk.tiles(),
            **COMPILE_OPTIONS,
        )
        batch_norm_merge_kernel[(triton.cdiv(len(center), 32),)](
            partial,
            view,
            mean,
            var,
            center,
            rstd,
            walk.splits,
            len(center),
            view.stride(0),
            eps,
            BLOCK_SPLITS=32,
            BLOCK_COLS=32,
            num_warps=4,
            **COMPILE_OPTIONS,
        )
        group_norm_output_kernel[(triton.cdiv(batch * channels, block_rows) * col_tiles,)](
            input,
            weight,
            bias,
            center,
            rstd,
            output,
            batch * channels,
            positions,
            channels,
            planes,
            col_tiles,
            stride_of(weight),
            stride_of(bias),
            BLOCK_ROWS=block_rows,
            BLOCK_COLS=block_cols,
            num_warps=num_warps_for(block_rows * block_cols),
            **COMPILE_OPTIONS,
        )


def group_norm_backward(
    grad_output,
    input,
    weight,
    bias,
    mean,
    rstd,
    num_groups,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    grad_input,
    grad_weight,
    grad_bias,
):
    if input.numel() == 0:
        for grad, needed in ((grad_weight, needs_weight_grad), (grad_bias, needs_bias_grad)):
            if needed:
                grad.zero_()
        return
    input, mean, rstd = input.contiguous(), mean.contiguous(), rstd.contiguous()
    batch, channels, positions = input.shape
    planes, num_planes = channels // num_groups, batch * channels
    sums = mean.new_empty((3, num_planes))
    slopes = mean.new_empty((3, batch * num_groups))
    block_rows, block_cols = plane_tile_for(num_planes, positions)
    tile = {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "num_warps": num_warps_for(block_rows * block_cols)}
    row_blocks, col_tiles = triton.cdiv(num_planes, block_rows), triton.cdiv(positions, block_cols)
    with on_device_of(input):
        group_norm_sums_kernel[(row_blocks,)](
            grad_output,
            input,
            mean,
            sums,
            num_planes,
            positions,
            channels,
            planes,
            *grad_output.stride(),
            **tile,
            **COMPILE_OPTIONS,
        )
        group_norm_slopes_kernel[(batch * num_groups,)](
            sums,
            weight,
            rstd,
            slopes,
            batch * num_groups,
            num_groups,
            planes,
            positions,
            stride_of(weight),
            BLOCK_PLANES=block_size_for_row(planes, 1024),
            num_warps=1,
            **COMPILE_OPTIONS,
        )
        if needs_weight_grad or needs_bias_grad:
            group_norm_parameters_kernel[(triton.cdiv(channels, 32),)](
                sums,
                slopes,
                rstd,
                grad_weight if needs_weight_grad else None,
                grad_bias if needs_bias_grad else None,
                batch,
                channels,
                planes,
                BLOCK_BATCH=32,
                BLOCK_COLS=32,
                num_warps=4,
                **COMPILE_OPTIONS,
            )
        if needs_input_grad:
            group_norm_gradient_kernel[(row_blocks * col_tiles,)](
                grad_output,
                input,
                weight,
                mean,
                rstd,
                slopes,
                grad_input,
                num_planes,
                positions,
                channels,
                planes,
                col_tiles,
                *grad_output.stride(),
                stride_of(weight),
                **tile,
                **COMPILE_OPTIONS,
            )
