"""swiglu and geglu on GPUs: one pass forward, one backward, given gate and up or both in one matrix."""

import triton
import triton.language as tl

from .common import (
    COMPILE_OPTIONS,
    INTERPRET,
    apply_activation,
    apply_activation_backward,
    block_size_for_row,
    num_warps_for,
    on_device_of,
)

TILE = 256 if INTERPRET else 2048  # elements


@triton.jit
def tile_of(num_rows, num_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """(rows [BLOCK_ROWS, 1] as int64, cols [1, BLOCK_COLS] as int64, mask) of this program"""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    rows = (tl.program_id(0) // col_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = (tl.program_id(0) % col_blocks).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    return rows[:, None], cols[None, :], (rows < num_rows)[:, None] & (cols < num_cols)[None, :]


@triton.jit
def gated_act_kernel(
    gate_ptr,
    up_ptr,
    output_ptr,
    num_rows,
    num_cols,
    gate_row_stride,
    gate_col_stride,
    up_row_stride,
    up_col_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    rows, cols, mask = tile_of(num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
    gate = tl.load(gate_ptr + rows * gate_row_stride + cols * gate_col_stride, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + rows * up_row_stride + cols * up_col_stride, mask=mask, other=0).to(tl.float32)
    output = apply_activation(gate, ACTIVATION) * up
    tl.store(output_ptr + rows * num_cols + cols, output.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_act_backward_kernel(
    grad_output_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    num_rows,
    num_cols,
    grad_row_stride,
    grad_col_stride,
    gate_row_stride,
    gate_col_stride,
    up_row_stride,
    up_col_stride,
    target_row_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    rows, cols, mask = tile_of(num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
    grad = tl.load(grad_output_ptr + rows * grad_row_stride + cols * grad_col_stride, mask=mask, other=0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * gate_row_stride + cols * gate_col_stride, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + rows * up_row_stride + cols * up_col_stride, mask=mask, other=0).to(tl.float32)
    grad_up = grad * apply_activation(gate, ACTIVATION)
    grad_gate = apply_activation_backward(grad * up, gate, ACTIVATION)
    offsets = rows * target_row_stride + cols
    tl.store(grad_gate_ptr + offsets, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_up_ptr + offsets, grad_up.to(grad_up_ptr.dtype.element_ty), mask=mask)


def halves(matrix, other):
    """(matrix, other), or the two halves of the matrix where there is no other."""
    if other is not None:
        return matrix, other
    columns = matrix.shape[1] // 2
    return matrix[:, :columns], matrix[:, columns:]


def tile_options(num_rows, num_cols, activation):
    """(grid, the constants of a launch)"""
    block_cols = block_size_for_row(num_cols, TILE)
    block_rows = block_size_for_row(num_rows, TILE // block_cols)
    grid = (triton.cdiv(num_rows, block_rows) * triton.cdiv(num_cols, block_cols),)
    return grid, {
        "ACTIVATION": activation,
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLS": block_cols,
        "num_warps": num_warps_for(block_rows * block_cols),
        **COMPILE_OPTIONS,
    }


def gated_act_forward(gate, up, activation, output):
    if output.numel() == 0:
        return
    gate, up = halves(gate, up)
    grid, options = tile_options(*output.shape, activation)
    with on_device_of(gate):
        gated_act_kernel[grid](gate, up, output, *output.shape, *gate.stride(), *up.stride(), **options)


def gated_act_backward(grad_output, gate, up, activation, grad_gate, grad_up):
    if grad_output.numel() == 0:
        return
    grad_gate, grad_up = halves(grad_gate, None if up is None else grad_up)
    gate, up = halves(gate, up)
    grid, options = tile_options(*grad_output.shape, activation)
    with on_device_of(gate):
        gated_act_backward_kernel[grid](
            grad_output,
            gate,
            up,
            grad_gate,
            grad_up,
            *grad_output.shape,
            *grad_output.stride(),
            *gate.stride(),
            *up.stride(),
            grad_gate.stride(0),
            **options,
        )
