"""What add_layer_norm does before a row is normalized: residual + dropout(input), and the mask of its backward."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Addition(NamedTuple):
    """The further arguments of a forward launch; residual None: nothing is added. sum None: it is not kept."""

    residual: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    dropout_p: float = 0.0
    sum: torch.Tensor | None = None

    def tensors(self):
        return self.residual, self.rng_state, self.sum

    def scalars(self):
        strides = (0, 0) if self.residual is None else self.residual.stride()
        return *strides, *dropout_scalars(self.dropout_p)


NO_ADDITION = Addition()


def dropout_scalars(dropout_p):
    """(threshold that the Philox word of a kept element reaches, what kept elements are multiplied by)"""
    return int(dropout_p * 2**32), 1 / (1 - dropout_p)


@triton.jit
def dropout_factor(rng_state_ptr, row, first_col, keep_threshold, keep_scale, BLOCK_COLS: tl.constexpr):
    """0 or keep_scale for BLOCK_COLS columns of each row: reference/philox.py: dropout_keep_rows.

    row: int64, a number or [rows, 1]; the result is [BLOCK_COLS] or [rows, BLOCK_COLS].
    """
    seed = tl.load(rng_state_ptr)
    offset = (tl.load(rng_state_ptr + 1) & 0xFFFFFFFF).to(tl.uint32)
    threshold = tl.cast(keep_threshold, tl.uint32)
    # one call draws four words, which belong to four neighbouring columns
    quads = (first_col // 4 + tl.arange(0, BLOCK_COLS // 4)).to(tl.uint32)
    if len(row.shape) == 2:
        quads = quads[None, :]
    row_low = (row & 0xFFFFFFFF).to(tl.uint32)
    row_high = (row >> 32).to(tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(seed, row_low, quads, row_high, offset)
    # as bytes, in case that bringing the four into the order of the columns goes through shared memory
    keep_0 = (word_0 >= threshold).to(tl.int8)
    keep_1 = (word_1 >= threshold).to(tl.int8)
    keep_2 = (word_2 >= threshold).to(tl.int8)
    keep_3 = (word_3 >= threshold).to(tl.int8)
    keep = tl.interleave(tl.interleave(keep_0, keep_2), tl.interleave(keep_1, keep_3))
    return tl.where(keep != 0, keep_scale, 0.0)


@triton.jit
def add_residual(
    x,
    residual,
    rng_state_ptr,
    row,
    first_col,
    keep_threshold,
    keep_scale,
    dtype: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """residual + dropout(x), rounded to dtype as it is stored; fp32"""
    if rng_state_ptr is not None:
        x *= dropout_factor(rng_state_ptr, row, first_col, keep_threshold, keep_scale, BLOCK_COLS)
    return (residual + x).to(dtype).to(tl.float32)
