"""Rows of a table by index on GPUs; the gradient of the table is in embedding_rows.py."""

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, block_size_for_row, num_warps_for, on_device_of
from .embedding_rows import launch_table_gradient

TILE = 256 if INTERPRET else 4096  # elements


@triton.jit
def embedding_kernel(
    input_ptr,
    weight_ptr,
    output_ptr,
    count,
    num_rows,
    num_cols,
    input_stride,
    weight_row_stride,
    weight_col_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """BLOCK_ROWS indices, BLOCK_COLS columns; an index that is no row of the table gives NaN."""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    block = (tl.program_id(0) // col_blocks).to(tl.int64)
    places = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(0) % col_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row = tl.load(input_ptr + places * input_stride, mask=places < count, other=0).to(tl.int64)
    is_row = (row >= 0) & (row < num_rows)
    in_row = (cols < num_cols)[None, :]
    offsets = row[:, None] * weight_row_stride + cols.to(tl.int64)[None, :] * weight_col_stride
    values = tl.load(weight_ptr + offsets, mask=is_row[:, None] & in_row, other=float("nan"))
    tl.store(output_ptr + places[:, None] * num_cols + cols[None, :], values, mask=(places < count)[:, None] & in_row)


def embedding_forward(input, weight, padding_idx, scale_grad_by_freq, output):
    if output.numel() == 0:
        return
    count, num_cols = output.shape
    block_cols = block_size_for_row(num_cols, TILE // 2)
    block_rows = block_size_for_row(count, TILE // block_cols)
    with on_device_of(weight):
        embedding_kernel[(triton.cdiv(count, block_rows) * triton.cdiv(num_cols, block_cols),)](
            input,
            weight,
            output,
            count,
            weight.shape[0],
            num_cols,
            input.stride(0),
            *weight.stride(),
            BLOCK_ROWS=block_rows,
            BLOCK_COLS=block_cols,
            num_warps=num_warps_for(block_rows * block_cols),
            **COMPILE_OPTIONS,
        )


def embedding_backward(grad_output, input, num_embeddings, padding_idx, scale_grad_by_freq, grad_weight):
    launch_table_gradient(grad_output, input, padding_idx, scale_grad_by_freq, grad_weight)
