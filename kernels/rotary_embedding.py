"""Rotation by position on GPUs: one pass, the same kernel forward and, with the angles negated, backward."""

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, block_size_for_row, num_warps_for, on_device_of

TILE = 128 if INTERPRET else 1024  # pairs


@triton.jit
def rotary_embedding_kernel(
    input_ptr,
    cos_ptr,
    sin_ptr,
    position_ids_ptr,
    output_ptr,
    num_rows,
    heads,
    length,
    head_dim,
    pairs,
    positions,
    offset,
    batch_stride,
    head_stride,
    row_stride,
    col_stride,
    cos_batch_stride,
    cos_row_stride,
    cos_col_stride,
    sin_batch_stride,
    sin_row_stride,
    sin_col_stride,
    ids_batch_stride,
    ids_row_stride,
    SIGN: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """BLOCK_ROWS rows of head_dim columns each; BLOCK_REST: columns beyond the pairs, 0 for none."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < num_rows
    place = rows % length
    head = rows // length % heads
    batch = rows // length // heads
    if position_ids_ptr is not None:
        ids = batch * ids_batch_stride + place * ids_row_stride
        position = tl.load(position_ids_ptr + ids, mask=is_row, other=0).to(tl.int64)
    else:
        position = place + offset
    start = (batch * batch_stride + head * head_stride + place * row_stride)[:, None]
    dtype: tl.constexpr = output_ptr.dtype.element_ty

    pair = tl.arange(0, BLOCK_PAIRS)[None, :].to(tl.int64)
    in_pairs = is_row[:, None] & (pair < pairs)
    # A position that is no row of the tables gives NaN.
    has_angle = in_pairs & ((position >= 0) & (position < positions))[:, None]
    cos_offsets = (batch * cos_batch_stride + position * cos_row_stride)[:, None] + pair * cos_col_stride
    sin_offsets = (batch * sin_batch_stride + position * sin_row_stride)[:, None] + pair * sin_col_stride
    cos = tl.load(cos_ptr + cos_offsets, mask=has_angle, other=float("nan")).to(tl.float32)
    sin = tl.load(sin_ptr + sin_offsets, mask=has_angle, other=float("nan")).to(tl.float32) * SIGN
    if INTERLEAVED:
        cols = tl.arange(0, 2 * BLOCK_PAIRS)[None, :].to(tl.int64)
        mask = is_row[:, None] & (cols < 2 * pairs)
        both = tl.load(input_ptr + start + cols * col_stride, mask=mask, other=0).to(tl.float32)
        x, y = tl.split(tl.reshape(both, (BLOCK_ROWS, BLOCK_PAIRS, 2)))
        turned = tl.interleave(x * cos - y * sin, y * cos + x * sin)
        tl.store(output_ptr + rows[:, None] * head_dim + cols, turned.to(dtype), mask=mask)
    else:
        x = tl.load(input_ptr + start + pair * col_stride, mask=in_pairs, other=0).to(tl.float32)
        y = tl.load(input_ptr + start + (pairs + pair) * col_stride, mask=in_pairs, other=0).to(tl.float32)
        target = output_ptr + rows[:, None] * head_dim + pair
        tl.store(target, (x * cos - y * sin).to(dtype), mask=in_pairs)
        tl.store(target + pairs, (y * cos + x * sin).to(dtype), mask=in_pairs)
    if BLOCK_REST > 0:
        cols = 2 * pairs + tl.arange(0, BLOCK_REST)[None, :].to(tl.int64)
        mask = is_row[:, None] & (cols < head_dim)
        rest = tl.load(input_ptr + start + cols * col_stride, mask=mask, other=0)
        tl.store(output_ptr + rows[:, None] * head_dim + cols, rest, mask=mask)


def launch(input, cos, sin, position_ids, offset, interleaved, sign, output):
    if output.numel() == 0:
        return
    batch, heads, length, head_dim = input.shape
    pairs, num_rows = cos.shape[2], batch * heads * length
    block_pairs = max(triton.next_power_of_2(max(pairs, 1)), 2)
    block_rows = block_size_for_row(num_rows, max(TILE // block_pairs, 1))
    rest = head_dim - 2 * pairs
    strides = [(0, *table.stride()[1:]) if len(table) == 1 else table.stride() for table in (cos, sin)]
    with on_device_of(input):
        rotary_embedding_kernel[(triton.cdiv(num_rows, block_rows),)](
            input,
            cos,
            sin,
            position_ids,
            output,
            num_rows,
            heads,
            length,
            head_dim,
            pairs,
            cos.shape[1],
            offset,
            *input.stride(),
            *strides[0],
            *strides[1],
            *((0, 0) if position_ids is None else position_ids.stride()),
            SIGN=sign,
            INTERLEAVED=interleaved,
            BLOCK_ROWS=block_rows,
            BLOCK_PAIRS=block_pairs,
            BLOCK_REST=triton.next_power_of_2(rest) if rest else 0,
            num_warps=num_warps_for(2 * block_rows * block_pairs),
            **COMPILE_OPTIONS,
        )


def rotary_embedding_forward(input, cos, sin, position_ids, offset, interleaved, output):
    launch(input, cos, sin, position_ids, offset, interleaved, 1, output)


def rotary_embedding_backward(grad_output, cos, sin, position_ids, offset, interleaved, grad_input):
    launch(grad_output, cos, sin, position_ids, offset, interleaved, -1, grad_input)
