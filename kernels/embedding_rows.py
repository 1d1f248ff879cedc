"""The gradient of a table whose rows were picked by index, for embedding, embedding_bag and embedding_layer_norm.

The occurrences are sorted by the row that they picked, stably, and cut into chunks of one length. A program walks along
a chunk and writes the rows whose occurrences all lie in it; of a row that goes on into other chunks it keeps partial
sums, which the program of the chunk where that row begins then adds up. No atomics: one order, the same bits in every
run.
"""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, block_size_for_row, num_warps_for, on_device_of

# Occurrences in a chunk: short enough for many programs. Short in the interpreter, so that small tests cross chunks.
CHUNK = 4 if INTERPRET else 16
MOST_COLS = 64 if INTERPRET else 512


@triton.jit
def cols_if(wanted, cols, num_cols):
    """The mask of the columns, or of none; a number `and` a vector of booleans would not be a mask."""
    return cols < tl.where(wanted != 0, num_cols, 0)


@triton.jit
def is_filled(row, num_rows, padding_idx):
    """Whether the row of the table gets a gradient."""
    return (row >= 0) & (row < num_rows) & (row != padding_idx)


@triton.jit
def table_gradient_kernel(
    grad_output_ptr,
    sorted_ptr,
    order_ptr,
    source_ptr,
    factor_ptr,
    winners_ptr,
    grad_weight_ptr,
    heads_ptr,
    tails_ptr,
    count,
    num_rows,
    num_cols,
    padding_idx,
    grad_row_stride,
    grad_col_stride,
    CHUNK: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """One chunk: rows of the table, and the partial sums of its first row (heads) or last row (tails)."""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    chunk = (tl.program_id(0) // col_blocks).to(tl.int64)
    cols = tl.program_id(0) % col_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    in_row = cols < num_cols
    first = chunk * CHUNK
    last = tl.minimum(first + CHUNK, count)
    dtype: tl.constexpr = grad_weight_ptr.dtype.element_ty

    row = tl.load(sorted_ptr + first).to(tl.int64)
    before = tl.load(sorted_ptr + tl.maximum(first - 1, 0)).to(tl.int64)
    # The row goes on from the chunk before.
    goes_on = ((first > 0) & (before == row)).to(tl.int32)
    before_from = tl.full((), -1, tl.int64)
    if winners_ptr is not None:
        before_from = tl.load(source_ptr + tl.load(order_ptr + tl.maximum(first - 1, 0)))
        before_from = tl.where(goes_on != 0, before_from, -1)
    total = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
    for k in range(first, last):
        next_row = tl.load(sorted_ptr + k).to(tl.int64)
        if next_row != row:
            wanted = cols_if((goes_on == 0) & is_filled(row, num_rows, padding_idx), cols, num_cols)
            tl.store(grad_weight_ptr + row * num_cols + cols, total.to(dtype), mask=wanted)
            tl.store(heads_ptr + chunk * num_cols + cols, total, mask=cols_if(goes_on, cols, num_cols))
            total = tl.zeros((BLOCK_COLS,), dtype=tl.float32)
            row = next_row
            goes_on = goes_on * 0
            before_from = tl.full((), -1, tl.int64)
        occurrence = tl.load(order_ptr + k)
        from_row = occurrence
        if source_ptr is not None:
            from_row = tl.load(source_ptr + occurrence)
        offsets = from_row * grad_row_stride + cols.to(tl.int64) * grad_col_stride
        grad = tl.load(grad_output_ptr + offsets, mask=in_row, other=0).to(tl.float32)
        if winners_ptr is not None:
            # A row that stands in a bag twice has won once.
            winner = tl.load(winners_ptr + from_row * num_cols + cols, mask=in_row, other=-1)
            grad = tl.where(winner == tl.where(from_row != before_from, row, -2), grad, 0.0)
            before_from = from_row
        if factor_ptr is not None:
            grad *= tl.load(factor_ptr + occurrence)
        total += grad
    after = tl.load(sorted_ptr + tl.minimum(last, count - 1)).to(tl.int64)
    ends_here = (last == count) | (after != row)
    wanted = cols_if((goes_on == 0) & ends_here & is_filled(row, num_rows, padding_idx), cols, num_cols)
    tl.store(grad_weight_ptr + row * num_cols + cols, total.to(dtype), mask=wanted)
    tl.store(heads_ptr + chunk * num_cols + cols, total, mask=cols_if(goes_on, cols, num_cols))
    is_tail = cols_if((goes_on == 0) & (last < count) & (after == row), cols, num_cols)
    tl.store(tails_ptr + chunk * num_cols + cols, total, mask=is_tail)


@triton.jit
def table_gradient_runs_kernel(
    sorted_ptr,
    grad_weight_ptr,
    heads_ptr,
    tails_ptr,
    count,
    num_chunks,
    num_rows,
    num_cols,
    padding_idx,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The row that begins in a chunk and goes on into others: its partial sums, added up in their order."""
    col_blocks = tl.cdiv(num_cols, BLOCK_COLS)
    chunk = (tl.program_id(0) // col_blocks).to(tl.int64)
    cols = tl.program_id(0) % col_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    in_row = cols < num_cols
    first = chunk * CHUNK
    row = tl.load(sorted_ptr + first + CHUNK - 1).to(tl.int64)
    begins_here = (first == 0) | (tl.load(sorted_ptr + tl.maximum(first - 1, 0)).to(tl.int64) != row)
    goes_on = tl.load(sorted_ptr + first + CHUNK).to(tl.int64) == row
    if begins_here & goes_on & is_filled(row, num_rows, padding_idx):
        # The first chunk that begins with another row.
        low = chunk + 1
        high = tl.zeros((), tl.int64) + num_chunks
        while low < high:
            middle = (low + high) // 2
            is_same = tl.load(sorted_ptr + middle * CHUNK).to(tl.int64) == row
            low = tl.where(is_same, middle + 1, low)
            high = tl.where(is_same, high, middle)
        sums = tl.zeros((BLOCK_CHUNKS, BLOCK_COLS), dtype=tl.float32)
        for start in range(chunk + 1, low, BLOCK_CHUNKS):
            chunks = start + tl.arange(0, BLOCK_CHUNKS)
            mask = (chunks < low)[:, None] & in_row[None, :]
            sums += tl.load(heads_ptr + chunks[:, None] * num_cols + cols[None, :], mask=mask, other=0)
        total = tl.load(tails_ptr + chunk * num_cols + cols, mask=in_row, other=0) + tl.sum(sums, axis=0)
        tl.store(grad_weight_ptr + row * num_cols + cols, total.to(grad_weight_ptr.dtype.element_ty), mask=in_row)


def launch_table_gradient(
    grad_output, input, padding_idx, divide_by_count, grad_weight, source=None, factor=None, winners=None
):
    """Fills grad_weight [num_rows, num_cols].

    input [count]: the row of the table of each occurrence; source [count] int64: the row of grad_output, ascending
    (None: the same number); factor [count] fp32: what it is multiplied by; winners [rows of grad_output, num_cols]
    int64: only where this names the row of the table is it added.
    """
    grad_weight.zero_()
    count, (num_rows, num_cols) = input.numel(), grad_weight.shape
    if count == 0 or grad_weight.numel() == 0:
        return
    with on_device_of(grad_weight):
        in_order, order = torch.sort(input, stable=True)
        if divide_by_count:
            counts = torch.searchsorted(in_order, input, right=True) - torch.searchsorted(in_order, input)
            factor = counts.to(torch.float32).reciprocal() if factor is None else factor / counts
        num_chunks = triton.cdiv(count, CHUNK)
        heads, tails = grad_output.new_empty((2, num_chunks, num_cols), dtype=torch.float32)
        block_cols = block_size_for_row(num_cols, MOST_COLS)
        col_blocks = triton.cdiv(num_cols, block_cols)
        table_gradient_kernel[(num_chunks * col_blocks,)](
            grad_output,
            in_order,
            order,
            source,
            factor,
            winners,
            grad_weight,
            heads,
            tails,
            count,
            num_rows,
            num_cols,
            padding_idx,
            *grad_output.stride(),
            CHUNK=CHUNK,
            BLOCK_COLS=block_cols,
            num_warps=num_warps_for(block_cols * 2),
            **COMPILE_OPTIONS,
        )
        if num_chunks > 1:
            table_gradient_runs_kernel[((num_chunks - 1) * col_blocks,)](
                in_order,
                grad_weight,
                heads,
                tails,
                count,
                num_chunks,
                num_rows,
                num_cols,
                padding_idx,
                CHUNK=CHUNK,
                BLOCK_CHUNKS=2 if INTERPRET else 8,
                BLOCK_COLS=block_cols,
                num_warps=num_warps_for(block_cols * 8),
                **COMPILE_OPTIONS,
            )
