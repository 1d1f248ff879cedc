"""Gradients of normalized rows on GPUs: see norm.py for how rows are cut.

With d = x - mean (or x), n = d * rstd and g = grad_output * weight, per row:
    grad_input = rstd * (g - mean of g - n * mean of (g * n)); the middle term only for CENTERED.
The forward stored a rounded mean; mean of d says by how much, and is taken away from d again.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, num_warps_for, on_device_of
from .norm import (
    LOOP_COLS,
    RESIDENT_COLS,
    load_rows,
    num_programs_for,
    row_tile_for,
    stride_of,
    strip_tile_for,
    tile_of_rows,
)
from .norm_addition import dropout_factor, dropout_scalars


@triton.jit
def load_weight(weight_ptr, cols, num_cols, weight_stride):
    """fp32 weight at `cols`, 1 where there is none"""
    if weight_ptr is not None:
        offsets = cols.to(tl.int64) * weight_stride
        weight = tl.load(weight_ptr + offsets, mask=cols < num_cols, other=0).to(tl.float32)
    else:
        weight = tl.full(cols.shape, 1.0, tl.float32)
    return weight


@triton.jit(do_not_specialize=["keep_threshold"])
def norm_backward_kernel(
    grad_output_ptr,
    input_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    grad_input_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    grad_sum_ptr,
    rng_state_ptr,
    grad_dropped_ptr,
    num_rows,
    num_cols,
    rows_per_program,
    grad_row_stride,
    grad_col_stride,
    input_row_stride,
    input_col_stride,
    weight_stride,
    grad_sum_row_stride,
    grad_sum_col_stride,
    keep_threshold,
    keep_scale,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Whole rows at once, rows_per_program of them one after the other."""
    _, cols, _ = tile_of_rows(tl.program_id(0), num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
    weight = load_weight(weight_ptr, cols, num_cols, weight_stride)
    sum_weight = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    sum_bias = tl.zeros((BLOCK_ROWS, BLOCK_COLS), dtype=tl.float32)
    first_row = tl.program_id(0).to(tl.int64) * rows_per_program
    for step in range(0, rows_per_program, BLOCK_ROWS):
        rows, cols, mask = tile_of_rows(first_row + step, num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
        grad = load_rows(grad_output_ptr, rows, cols, mask, grad_row_stride, grad_col_stride)
        x = load_rows(input_ptr, rows, cols, mask, input_row_stride, input_col_stride)
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0)
        if CENTERED:
            x = tl.where(mask, x - tl.load(mean_ptr + rows, mask=rows < num_rows, other=0), 0.0)
            x = tl.where(mask, x - tl.sum(x, axis=1, keep_dims=True) / num_cols, 0.0)
        normalized = x * rstd
        if partial_weight_ptr is not None:
            sum_weight += grad * normalized
        if partial_bias_ptr is not None:
            sum_bias += grad
        if grad_input_ptr is not None:
            g = grad * weight
            slope = tl.sum(g * normalized, axis=1, keep_dims=True) / num_cols
            gradient = g - normalized * slope
            if CENTERED:
                gradient -= tl.sum(g, axis=1, keep_dims=True) / num_cols
            gradient *= rstd
            if grad_sum_ptr is not None:
                gradient += load_rows(grad_sum_ptr, rows, cols, mask, grad_sum_row_stride, grad_sum_col_stride)
            dtype: tl.constexpr = grad_input_ptr.dtype.element_ty
            tl.store(grad_input_ptr + rows * num_cols + cols, gradient.to(dtype), mask=mask)
            if grad_dropped_ptr is not None:
                gradient *= dropout_factor(rng_state_ptr, rows, 0, keep_threshold, keep_scale, BLOCK_COLS)
                tl.store(grad_dropped_ptr + rows * num_cols + cols, gradient.to(dtype), mask=mask)
    partial = tl.program_id(0).to(tl.int64) * num_cols + tl.arange(0, BLOCK_COLS)
    in_row = tl.arange(0, BLOCK_COLS) < num_cols
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, tl.sum(sum_weight, axis=0), mask=in_row)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, tl.sum(sum_bias, axis=0), mask=in_row)


@triton.jit
def norm_backward_sums_kernel(
    grad_output_ptr,
    input_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    num_rows,
    num_cols,
    grad_row_stride,
    grad_col_stride,
    input_row_stride,
    input_col_stride,
    weight_stride,
    CENTERED: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """sums [3, num_rows]: the means of d, g and g * n of each long row; one row a program."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_COLS)
    mean = 0.0
    if CENTERED:
        mean = tl.load(mean_ptr + row)
    sum_d = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    sum_g = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    sum_gd = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    for first_col in range(0, num_cols, BLOCK_COLS):
        cols = first_col + lanes
        mask = cols < num_cols
        grad = load_rows(grad_output_ptr, row, cols, mask, grad_row_stride, grad_col_stride)
        x = load_rows(input_ptr, row, cols, mask, input_row_stride, input_col_stride)
        g = grad * load_weight(weight_ptr, cols, num_cols, weight_stride)
        if CENTERED:
            x = tl.where(mask, x - mean, 0.0)
            sum_d += x
            sum_g += g
        sum_gd += g * x
    rest = tl.sum(sum_d, axis=0) / num_cols
    offset = tl.sum(sum_g, axis=0) / num_cols
    slope = (tl.sum(sum_gd, axis=0) / num_cols - rest * offset) * tl.load(rstd_ptr + row)
    tl.store(sums_ptr + row, rest)
    tl.store(sums_ptr + num_rows + row, offset)
    tl.store(sums_ptr + 2 * num_rows.to(tl.int64) + row, slope)


@triton.jit(do_not_specialize=["keep_threshold"])
def norm_backward_long_kernel(
    grad_output_ptr,
    input_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    grad_input_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    grad_sum_ptr,
    rng_state_ptr,
    grad_dropped_ptr,
    num_rows,
    num_cols,
    rows_per_program,
    grad_row_stride,
    grad_col_stride,
    input_row_stride,
    input_col_stride,
    weight_stride,
    grad_sum_row_stride,
    grad_sum_col_stride,
    keep_threshold,
    keep_scale,
    CENTERED: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """A strip of columns down rows_per_program rows, given the sums over each row."""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    program = tl.program_id(0) // col_blocks
    first_col = tl.program_id(0) % col_blocks * BLOCK_COLS
    cols = first_col + tl.arange(0, BLOCK_COLS)
    mask = cols < num_cols
    weight = load_weight(weight_ptr, cols, num_cols, weight_stride)
    sum_weight = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    sum_bias = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    first_row = program.to(tl.int64) * rows_per_program
    for step in range(0, tl.minimum(rows_per_program, num_rows - first_row)):
        row = first_row + step
        grad = load_rows(grad_output_ptr, row, cols, mask, grad_row_stride, grad_col_stride)
        x = load_rows(input_ptr, row, cols, mask, input_row_stride, input_col_stride)
        rstd = tl.load(rstd_ptr + row)
        if CENTERED:
            x = (x - tl.load(mean_ptr + row)) - tl.load(sums_ptr + row)
        normalized = x * rstd
        if partial_weight_ptr is not None:
            sum_weight += grad * normalized
        if partial_bias_ptr is not None:
            sum_bias += grad
        if grad_input_ptr is not None:
            gradient = grad * weight - normalized * tl.load(sums_ptr + 2 * num_rows.to(tl.int64) + row)
            if CENTERED:
                gradient -= tl.load(sums_ptr + num_rows + row)
            gradient *= rstd
            if grad_sum_ptr is not None:
                gradient += load_rows(grad_sum_ptr, row, cols, mask, grad_sum_row_stride, grad_sum_col_stride)
            dtype: tl.constexpr = grad_input_ptr.dtype.element_ty
            tl.store(grad_input_ptr + row * num_cols + cols, gradient.to(dtype), mask=mask)
            if grad_dropped_ptr is not None:
                gradient *= dropout_factor(rng_state_ptr, row, first_col, keep_threshold, keep_scale, BLOCK_COLS)
                tl.store(grad_dropped_ptr + row * num_cols + cols, gradient.to(dtype), mask=mask)
    partial = program.to(tl.int64) * num_cols + cols
    if partial_weight_ptr is not None:
        tl.store(partial_weight_ptr + partial, sum_weight, mask=mask)
    if partial_bias_ptr is not None:
        tl.store(partial_bias_ptr + partial, sum_bias, mask=mask)


@triton.jit
def norm_reduce_kernel(
    partial_ptr, grad_ptr, num_partials, num_cols, BLOCK_PARTIALS: tl.constexpr, BLOCK_COLS: tl.constexpr
):
    """The partial sums of each column, added up in one order."""
    cols = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    sums = tl.zeros((BLOCK_PARTIALS, BLOCK_COLS), dtype=tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partials = first + tl.arange(0, BLOCK_PARTIALS)
        mask = (partials < num_partials)[:, None] & (cols < num_cols)[None, :]
        offsets = partials.to(tl.int64)[:, None] * num_cols + cols[None, :]
        sums += tl.load(partial_ptr + offsets, mask=mask, other=0)
    tl.store(grad_ptr + cols, tl.sum(sums, axis=0).to(grad_ptr.dtype.element_ty), mask=cols < num_cols)


class AdditionGradient(NamedTuple):
    """The further arguments of a backward launch: the sum's own gradient, and where input's goes through dropout."""

    grad_sum: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    dropout_p: float = 0.0
    grad_dropped: torch.Tensor | None = None

    def tensors(self):
        return self.grad_sum, self.rng_state, self.grad_dropped

    def scalars(self):
        strides = (0, 0) if self.grad_sum is None else self.grad_sum.stride()
        return *strides, *dropout_scalars(self.dropout_p)


def launch_backward(
    grad_output,
    input,
    weight,
    mean,
    rstd,
    grad_input,
    grad_weight,
    grad_bias,
    addition=AdditionGradient(),  # noqa: B008
):
    """Fills the gradients that are not None; mean None: root-mean-square normalization."""
    num_cols = input.shape[1]
    wanted = [grad for grad in (grad_weight, grad_bias) if grad is not None]
    if input.numel() == 0:
        for grad in wanted:
            grad.zero_()
        return
    with on_device_of(input):
        # Drawing a mask takes registers that half a row of gradients would.
        resident_cols = RESIDENT_COLS if addition.grad_dropped is None else RESIDENT_COLS // 2
        launch = launch_whole_rows if num_cols <= resident_cols else launch_long_rows
        partials = launch(grad_output, input, weight, mean, rstd, grad_input, grad_weight, grad_bias, addition)
        for partial, grad in zip((p for p in partials if p is not None), wanted, strict=True):
            norm_reduce_kernel[(triton.cdiv(num_cols, 64),)](
                partial, grad, len(partial), num_cols, BLOCK_PARTIALS=32, BLOCK_COLS=64, num_warps=4, **COMPILE_OPTIONS
            )


def partial_sums(num_programs, input, *grads):
    """fp32 [num_programs, num_cols] for each gradient that is wanted."""
    shape = (num_programs, input.shape[1])
    return [None if grad is None else input.new_empty(shape, dtype=torch.float32) for grad in grads]


def launch_whole_rows(grad_output, input, weight, mean, rstd, grad_input, grad_weight, grad_bias, addition):
    num_rows, num_cols = input.shape
    tile = row_tile_for(num_rows, num_cols)
    row_blocks = triton.cdiv(num_rows, tile.block_rows)
    blocks_per_program = triton.cdiv(row_blocks, num_programs_for(row_blocks, tile.num_warps, input.device))
    num_programs = triton.cdiv(row_blocks, blocks_per_program)
    partials = partial_sums(num_programs, input, grad_weight, grad_bias)
    norm_backward_kernel[(num_programs,)](
        grad_output,
        input,
        weight,
        mean,
        rstd,
        grad_input,
        *partials,
        *addition.tensors(),
        num_rows,
        num_cols,
        blocks_per_program * tile.block_rows,
        *grad_output.stride(),
        *input.stride(),
        stride_of(weight),
        *addition.scalars(),
        CENTERED=mean is not None,
        BLOCK_ROWS=tile.block_rows,
        BLOCK_COLS=tile.block_cols,
        num_warps=tile.num_warps,
        **COMPILE_OPTIONS,
    )
    return partials


def launch_long_rows(grad_output, input, weight, mean, rstd, grad_input, grad_weight, grad_bias, addition):
    num_rows, num_cols = input.shape
    tile, rows_per_program = strip_tile_for(num_rows)
    num_programs = triton.cdiv(num_rows, rows_per_program)
    sums = input.new_empty((3, num_rows), dtype=torch.float32)
    partials = partial_sums(num_programs, input, grad_weight, grad_bias)
    tensors = (grad_output, input, weight, mean, rstd, sums)
    strides = (*grad_output.stride(), *input.stride(), stride_of(weight))
    norm_backward_sums_kernel[(num_rows,)](
        *tensors,
        num_rows,
        num_cols,
        *strides,
        CENTERED=mean is not None,
        BLOCK_COLS=LOOP_COLS,
        num_warps=num_warps_for(LOOP_COLS),
        **COMPILE_OPTIONS,
    )
    norm_backward_long_kernel[(num_programs * triton.cdiv(num_cols, tile.block_cols),)](
        *tensors,
        grad_input,
        *partials,
        *addition.tensors(),
        num_rows,
        num_cols,
        rows_per_program,
        *strides,
        *addition.scalars(),
        CENTERED=mean is not None,
        BLOCK_COLS=tile.block_cols,
        num_warps=tile.num_warps,
        **COMPILE_OPTIONS,
    )
    return partials
