"""Normalization of rows on GPUs: the kernels of layer_norm (CENTERED), rms_norm and add_layer_norm.

Rows of up to RESIDENT_COLS columns stay in registers between their statistics and their output, and one program keeps
partial sums of the parameters' gradients over all its rows. Longer rows are walked twice, the second time out of the
L2 cache, and their parameter gradients come from tiles of columns. Partial sums are added up by another kernel in one
order: no atomics, the same bits in every run. What add_layer_norm does besides stands in norm_addition.py.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, block_size_for_row, num_multiprocessors, num_warps_for, on_device_of
from .norm_addition import NO_ADDITION, add_residual

# The longest row that is kept in registers; columns at a time of a longer one in the walk along it, and in the walk
# down a strip of columns. Small in the interpreter, so that short tests meet every border.
RESIDENT_COLS, LOOP_COLS, STRIP_COLS = (1024, 512, 256) if INTERPRET else (8192, 4096, 2048)


class RowTile(NamedTuple):
    block_rows: int
    block_cols: int
    num_warps: int


def row_tile_for(num_rows, num_cols):
    """A tile of whole rows; short rows share a program, as long as there are enough of them."""
    block_cols = max(block_size_for_row(num_cols, RESIDENT_COLS), 4)  # dropout draws for four columns at a time
    block_rows = block_size_for_row(num_rows, max(2048 // block_cols, 1))
    return RowTile(block_rows, block_cols, num_warps_for(block_rows * block_cols))


def strip_tile_for(num_rows):
    """(tile, rows per program) for gradients of long rows: a program walks down its rows in a strip of columns."""
    rows_per_program = max(16, triton.cdiv(num_rows, 64))
    return RowTile(1, STRIP_COLS, num_warps_for(STRIP_COLS)), rows_per_program


def num_programs_for(num_row_blocks, num_warps, device):
    """Programs that share out the rows: 16 warps a multiprocessor hide the latency of its loads."""
    side_by_side = 3 if INTERPRET else num_multiprocessors(device) * max(16 // num_warps, 1)
    return min(num_row_blocks, side_by_side)


# ---- statistics ------------------------------------------------------------------------------------------------------


@triton.jit
def tile_of_rows(first_row, num_rows, num_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """(rows [BLOCK_ROWS, 1] as int64, cols [1, BLOCK_COLS], mask)"""
    rows = (first_row.to(tl.int64) + tl.arange(0, BLOCK_ROWS))[:, None]
    cols = tl.arange(0, BLOCK_COLS)[None, :]
    return rows, cols, (rows < num_rows) & (cols < num_cols)


@triton.jit
def center(x, mask, num_cols):
    """(mean [rows, 1], x - mean) of whole rows; the second step takes away what rounding left of a large mean."""
    mean = tl.sum(x, axis=1, keep_dims=True) / num_cols
    centered = tl.where(mask, x - mean, 0.0)
    rest = tl.sum(centered, axis=1, keep_dims=True) / num_cols
    return mean + rest, tl.where(mask, centered - rest, 0.0)


@triton.jit
def scale_and_shift(normalized, weight_ptr, bias_ptr, cols, num_cols, weight_stride, bias_stride):
    """normalized * weight + bias, fp32"""
    if weight_ptr is not None:
        offsets = cols.to(tl.int64) * weight_stride
        normalized *= tl.load(weight_ptr + offsets, mask=cols < num_cols, other=0).to(tl.float32)
    if bias_ptr is not None:
        offsets = cols.to(tl.int64) * bias_stride
        normalized += tl.load(bias_ptr + offsets, mask=cols < num_cols, other=0).to(tl.float32)
    return normalized


@triton.jit
def load_rows(ptr, rows, cols, mask, row_stride, col_stride):
    """fp32 [rows, cols], 0 outside of mask"""
    return tl.load(ptr + rows * row_stride + cols.to(tl.int64) * col_stride, mask=mask, other=0).to(tl.float32)


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["keep_threshold"])
def norm_forward_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    rng_state_ptr,
    sum_ptr,
    num_rows,
    num_cols,
    input_row_stride,
    input_col_stride,
    weight_stride,
    bias_stride,
    residual_row_stride,
    residual_col_stride,
    keep_threshold,
    keep_scale,
    eps,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Whole rows at once."""
    rows, cols, mask = tile_of_rows(tl.program_id(0) * BLOCK_ROWS, num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
    x = load_rows(input_ptr, rows, cols, mask, input_row_stride, input_col_stride)
    if residual_ptr is not None:
        residual = load_rows(residual_ptr, rows, cols, mask, residual_row_stride, residual_col_stride)
        dtype: tl.constexpr = input_ptr.dtype.element_ty
        x = add_residual(x, residual, rng_state_ptr, rows, 0, keep_threshold, keep_scale, dtype, BLOCK_COLS)
        if sum_ptr is not None:
            tl.store(sum_ptr + rows * num_cols + cols, x.to(dtype), mask=mask)
    if CENTERED:
        mean, x = center(x, mask, num_cols)
        tl.store(mean_ptr + rows, mean, mask=rows < num_rows)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / num_cols + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)
    y = scale_and_shift(x * rstd, weight_ptr, bias_ptr, cols, num_cols, weight_stride, bias_stride)
    tl.store(output_ptr + rows * num_cols + cols, y.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["keep_threshold"])
def norm_forward_long_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    rng_state_ptr,
    sum_ptr,
    num_cols,
    input_row_stride,
    input_col_stride,
    weight_stride,
    bias_stride,
    residual_row_stride,
    residual_col_stride,
    keep_threshold,
    keep_scale,
    eps,
    CENTERED: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One row a program, BLOCK_COLS columns at a time."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_COLS)
    dtype: tl.constexpr = input_ptr.dtype.element_ty

    # Differences from a number of the row's own size keep the digits that a large mean would round away.
    shift = 0.0
    if CENTERED:
        first = load_rows(input_ptr, row, lanes, lanes < num_cols, input_row_stride, input_col_stride)
        if residual_ptr is not None:
            residual = load_rows(residual_ptr, row, lanes, lanes < num_cols, residual_row_stride, residual_col_stride)
            first = add_residual(first, residual, rng_state_ptr, row, 0, keep_threshold, keep_scale, dtype, BLOCK_COLS)
        shift = tl.sum(first, axis=0) / tl.minimum(BLOCK_COLS, num_cols)

    # Welford's recurrence in each lane: the loop has no reduction across threads, and no large sums to cancel.
    lane_mean = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    lane_m2 = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    lane_count = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    for first_col in range(0, num_cols, BLOCK_COLS):
        cols = first_col + lanes
        mask = cols < num_cols
        x = load_rows(input_ptr, row, cols, mask, input_row_stride, input_col_stride)
        if residual_ptr is not None:
            residual = load_rows(residual_ptr, row, cols, mask, residual_row_stride, residual_col_stride)
            x = add_residual(x, residual, rng_state_ptr, row, first_col, keep_threshold, keep_scale, dtype, BLOCK_COLS)
            tl.store(sum_ptr + row * num_cols + cols, x.to(dtype), mask=mask)
        if CENTERED:
            d = x - shift
            count = lane_count + 1.0
            delta = d - lane_mean
            new_mean = lane_mean + delta / count
            lane_m2 = tl.where(mask, lane_m2 + delta * (d - new_mean), lane_m2)
            lane_mean = tl.where(mask, new_mean, lane_mean)
            lane_count = tl.where(mask, count, lane_count)
        else:
            lane_m2 += x * x
    mean = 0.0
    if CENTERED:
        mean = tl.sum(lane_mean * lane_count, axis=0) / num_cols
        apart = lane_mean - mean
        lane_m2 += lane_count * apart * apart
        tl.store(mean_ptr + row, mean + shift)
    rstd = tl.rsqrt(tl.sum(lane_m2, axis=0) / num_cols + eps)
    tl.store(rstd_ptr + row, rstd)

    if residual_ptr is not None:
        tl.debug_barrier()  # the stored sum is read back, maybe by another thread
    for first_col in range(0, num_cols, BLOCK_COLS):
        cols = first_col + lanes
        mask = cols < num_cols
        if residual_ptr is not None:
            x = load_rows(sum_ptr, row, cols, mask, num_cols, 1)
        else:
            x = load_rows(input_ptr, row, cols, mask, input_row_stride, input_col_stride)
        if CENTERED:
            x = (x - shift) - mean
        y = scale_and_shift(x * rstd, weight_ptr, bias_ptr, cols, num_cols, weight_stride, bias_stride)
        tl.store(output_ptr + row * num_cols + cols, y.to(output_ptr.dtype.element_ty), mask=mask)


def launch_forward(input, weight, bias, eps, output, mean, rstd, addition=NO_ADDITION):
    """Fills output, mean and rstd (and the addition's sum); mean None: root-mean-square normalization."""
    num_rows, num_cols = input.shape
    if input.numel() == 0:
        for statistic in (mean, rstd):
            if statistic is not None:
                statistic.fill_(float("nan"))
        return
    is_long = num_cols > RESIDENT_COLS
    if is_long and addition.residual is not None and addition.sum is None:
        addition = addition._replace(sum=output)  # a place to keep the sum until the output takes it
    tensors = (input, weight, bias, output, mean, rstd, *addition.tensors())
    scalars = (*input.stride(), stride_of(weight), stride_of(bias), *addition.scalars(), eps)
    with on_device_of(input):
        if not is_long:
            tile = row_tile_for(num_rows, num_cols)
            norm_forward_kernel[(triton.cdiv(num_rows, tile.block_rows),)](
                *tensors,
                num_rows,
                num_cols,
                *scalars,
                CENTERED=mean is not None,
                BLOCK_ROWS=tile.block_rows,
                BLOCK_COLS=tile.block_cols,
                num_warps=tile.num_warps,
                maxnreg=64,  # left to itself, ptxas takes fewer and spills for some tiles
                **COMPILE_OPTIONS,
            )
        else:
            norm_forward_long_kernel[(num_rows,)](
                *tensors,
                num_cols,
                *scalars,
                CENTERED=mean is not None,
                BLOCK_COLS=LOOP_COLS,
                num_warps=num_warps_for(LOOP_COLS),
                **COMPILE_OPTIONS,
            )


def stride_of(parameter):
    return 0 if parameter is None else parameter.stride(0)
