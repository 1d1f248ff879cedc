"""Bags of rows of a table on GPUs; the gradient of the table is in embedding_rows.py."""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, block_size_for_row, num_warps_for, on_device_of
from .embedding_rows import launch_table_gradient

# No padding: -1 would take an index of -1, which is no row, for it.
NO_PADDING = -(2**63)
# Rows of a bag that are read side by side, and columns.
BLOCK_PLACES, MOST_COLS = (4, 32) if INTERPRET else (8, 256)


@triton.jit
def bag_bounds(offsets_ptr, bag, num_offsets, count, offsets_stride):
    """(begin, end) of a bag, cut to what there is"""
    begin = tl.load(offsets_ptr + bag * offsets_stride).to(tl.int64)
    end = tl.zeros((), tl.int64) + count
    if bag + 1 < num_offsets:
        end = tl.load(offsets_ptr + (bag + 1) * offsets_stride).to(tl.int64)
    begin = tl.minimum(tl.maximum(begin, 0), count)
    return begin, tl.minimum(tl.maximum(end, begin), count)


@triton.jit
def embedding_bag_kernel(
    input_ptr,
    weight_ptr,
    offsets_ptr,
    samples_ptr,
    output_ptr,
    bag_size_ptr,
    winners_ptr,
    count,
    num_rows,
    num_offsets,
    num_cols,
    padding_idx,
    input_stride,
    weight_row_stride,
    weight_col_stride,
    offsets_stride,
    samples_stride,
    IS_MEAN: tl.constexpr,
    BLOCK_PLACES: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One bag, BLOCK_COLS columns; an index that is no row of the table gives NaN."""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    bag = (tl.program_id(0) // col_blocks).to(tl.int64)
    cols = tl.program_id(0) % col_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_offsets = cols.to(tl.int64) * weight_col_stride
    in_row = cols < num_cols
    begin, end = bag_bounds(offsets_ptr, bag, num_offsets, count, offsets_stride)
    size = tl.zeros((), tl.int64)
    if winners_ptr is not None:
        best = tl.zeros((BLOCK_COLS,), tl.float32)
        winner = tl.full((BLOCK_COLS,), -1, tl.int64)
        for place in range(begin, end):
            row = tl.load(input_ptr + place * input_stride).to(tl.int64)
            if row != padding_idx:
                size += 1
                is_row = cols < tl.where((row >= 0) & (row < num_rows), num_cols, 0)
                value = tl.load(weight_ptr + row * weight_row_stride + col_offsets, mask=is_row, other=float("nan"))
                value = value.to(tl.float32)
                # The first of equal values wins, and NaN of the table only where it comes first.
                wins = (winner < 0) | (value > best) | (is_row == 0)
                best = tl.where(wins, value, best)
                # Not negative, so that its NaN stays; and no row, so that it has no gradient.
                winner = tl.where(wins, tl.where(is_row, row, num_rows), winner)
        tl.store(winners_ptr + bag * num_cols + cols, winner, mask=in_row)
        tl.store(output_ptr + bag * num_cols + cols, best.to(output_ptr.dtype.element_ty), mask=in_row)
    else:
        total = tl.zeros((BLOCK_PLACES, BLOCK_COLS), tl.float32)
        for first in range(begin, end, BLOCK_PLACES):
            places = first + tl.arange(0, BLOCK_PLACES)
            row = tl.load(input_ptr + places * input_stride, mask=places < end, other=0).to(tl.int64)
            counts = (places < end) & (row != padding_idx)
            size += tl.sum(counts.to(tl.int64), axis=0)
            is_row = (row >= 0) & (row < num_rows)
            offsets = row[:, None] * weight_row_stride + col_offsets[None, :]
            mask = (counts & is_row)[:, None] & in_row[None, :]
            values = tl.load(weight_ptr + offsets, mask=mask, other=float("nan")).to(tl.float32)
            if samples_ptr is not None:
                sample = tl.load(samples_ptr + places * samples_stride, mask=places < end, other=0)
                values *= sample.to(tl.float32)[:, None]
            total += tl.where(counts[:, None], values, 0.0)
        result = tl.sum(total, axis=0)
        if IS_MEAN:
            result /= tl.maximum(size, 1).to(tl.float32)
        tl.store(output_ptr + bag * num_cols + cols, result.to(output_ptr.dtype.element_ty), mask=in_row)
    tl.store(bag_size_ptr + bag, size)


@triton.jit
def embedding_bag_samples_kernel(
    grad_output_ptr,
    input_ptr,
    weight_ptr,
    bag_ptr,
    grad_samples_ptr,
    count,
    num_cols,
    grad_row_stride,
    grad_col_stride,
    weight_row_stride,
    weight_col_stride,
    BLOCK_PLACES: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The dot product of each row with the gradient of its bag; 0 where input is negative."""
    places = tl.program_id(0).to(tl.int64) * BLOCK_PLACES + tl.arange(0, BLOCK_PLACES)
    row = tl.load(input_ptr + places, mask=places < count, other=-1)
    bag = tl.load(bag_ptr + places, mask=places < count, other=0)
    total = tl.zeros((BLOCK_PLACES, BLOCK_COLS), tl.float32)
    for first_col in range(0, num_cols, BLOCK_COLS):
        cols = (first_col + tl.arange(0, BLOCK_COLS)).to(tl.int64)
        mask = (row >= 0)[:, None] & (cols < num_cols)[None, :]
        weight_offsets = row[:, None] * weight_row_stride + cols[None, :] * weight_col_stride
        grad_offsets = bag[:, None] * grad_row_stride + cols[None, :] * grad_col_stride
        values = tl.load(weight_ptr + weight_offsets, mask=mask, other=0).to(tl.float32)
        total += values * tl.load(grad_output_ptr + grad_offsets, mask=mask, other=0).to(tl.float32)
    sums = tl.sum(total, axis=1).to(grad_samples_ptr.dtype.element_ty)
    tl.store(grad_samples_ptr + places, sums, mask=places < count)


def embedding_bag_forward(
    input,
    weight,
    offsets,
    per_sample_weights,
    mode,
    padding_idx,
    scale_grad_by_freq,
    include_last_offset,
    output,
    bag_size,
    max_indices,
):
    num_bags, num_cols = output.shape
    if output.numel() == 0:
        bag_size.zero_()
        return
    block_cols = block_size_for_row(num_cols, MOST_COLS)
    with on_device_of(weight):
        embedding_bag_kernel[(num_bags * triton.cdiv(num_cols, block_cols),)](
            input,
            weight,
            offsets,
            per_sample_weights,
            output,
            bag_size,
            max_indices if mode == "max" else None,
            input.numel(),
            weight.shape[0],
            len(offsets),
            num_cols,
            padding_idx if padding_idx >= 0 else NO_PADDING,
            input.stride(0),
            *weight.stride(),
            offsets.stride(0),
            0 if per_sample_weights is None else per_sample_weights.stride(0),
            IS_MEAN=mode == "mean",
            BLOCK_PLACES=BLOCK_PLACES,
            BLOCK_COLS=block_cols,
            num_warps=num_warps_for(BLOCK_PLACES * block_cols),
            **COMPILE_OPTIONS,
        )


def members(input, offsets, padding_idx, include_last_offset, num_rows):
    """(the row of each occurrence, or -1 where it counts for nothing; the bag that it is in)"""
    place = torch.arange(input.shape[0], device=input.device)
    starts = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(starts.contiguous(), place, right=True) - 1
    counts = (input != padding_idx) & (bag >= 0) & (input >= 0) & (input < num_rows)
    if include_last_offset:
        counts = counts & (place < offsets[-1])
    return input.long().where(counts, -1), bag.clamp(min=0)


def embedding_bag_backward(
    grad_output,
    input,
    weight,
    offsets,
    per_sample_weights,
    bag_size,
    max_indices,
    mode,
    padding_idx,
    scale_grad_by_freq,
    include_last_offset,
    needs_weight_grad,
    needs_per_sample_weights_grad,
    grad_weight,
    grad_per_sample_weights,
):
    if grad_output.numel() == 0 or input.numel() == 0:
        grad_weight.zero_()
        grad_per_sample_weights.zero_()
        return
    with on_device_of(weight):
        row, bag = members(input, offsets, padding_idx, include_last_offset, weight.shape[0])
        if needs_per_sample_weights_grad:
            block_cols = block_size_for_row(weight.shape[1], MOST_COLS)
            embedding_bag_samples_kernel[(triton.cdiv(input.numel(), BLOCK_PLACES),)](
                grad_output,
                row,
                weight,
                bag,
                grad_per_sample_weights,
                input.numel(),
                weight.shape[1],
                *grad_output.stride(),
                *weight.stride(),
                BLOCK_PLACES=BLOCK_PLACES,
                BLOCK_COLS=block_cols,
                num_warps=num_warps_for(BLOCK_PLACES * block_cols),
                **COMPILE_OPTIONS,
            )
        if not needs_weight_grad:
            return
        factor = None if per_sample_weights is None else per_sample_weights.float().contiguous()
        if mode == "mean":
            factor = bag_size.clamp(min=1).float().reciprocal()[bag]
        launch_table_gradient(
            grad_output,
            row,
            padding_idx,
            scale_grad_by_freq,
            grad_weight,
            bag,
            factor,
            max_indices if mode == "max" else None,
        )
