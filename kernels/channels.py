"""How kernels on images walk over [batch, channels, positions], whichever of the two lies side by side in memory.

A tensor is seen as [groups, rows, cols]. With channels first a group is a channel, rows are the batch, cols the
positions. With channels last there is one group, rows are all positions of the batch, and cols the channels (KEEP_COLS:
sums go over rows alone). A program walks over tiles of one group, or of one block of columns.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .common import INTERPRET, block_size_for_row, num_multiprocessors, num_warps_for

# Elements of a tile, and columns side by side: 256 bytes of float32 with channels last.
TILE, STRIP_COLS = (256, 16) if INTERPRET else (2048, 64)


def is_channels_last(tensor):
    """The rule by which results are laid out, see bigkern/channel_arguments.py."""
    return tensor.shape[2] == 1 or (tensor.stride(1) == 1 and tensor.stride(2) == tensor.shape[1])


def grouped(tensor, channels_last):
    """[batch, channels, positions] as [groups, rows, cols]; a copy only where positions of the batch lie unevenly."""
    if not channels_last:
        return tensor.transpose(0, 1)
    batch, channels, positions = tensor.shape
    return tensor.transpose(1, 2).reshape(1, batch * positions, channels)


def stride_of(parameter):
    return 0 if parameter is None else parameter.stride(0)


class Walk(NamedTuple):
    """How programs share out the tiles of a [groups, rows, cols]."""

    keep_cols: bool
    block_rows: int
    block_cols: int
    num_blocks: int  # groups, or blocks of columns
    num_tiles: int  # of each
    splits: int  # programs that share out the tiles of one, for sums

    def tiles(self):
        return {
            "KEEP_COLS": self.keep_cols,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_COLS": self.block_cols,
            "num_warps": num_warps_for(self.block_rows * self.block_cols),
        }

    @property
    def tiles_per_split(self):
        return triton.cdiv(self.num_tiles, self.splits)


def walk_of(groups, rows, cols, keep_cols, device):
    """The Walk: tiles as wide as the columns allow, and enough programs to fill the device."""
    block_cols = block_size_for_row(cols, STRIP_COLS if keep_cols else TILE)
    block_rows = block_size_for_row(rows, TILE // block_cols)
    num_blocks = triton.cdiv(cols, block_cols) if keep_cols else groups
    num_tiles = triton.cdiv(rows, block_rows) * (1 if keep_cols else triton.cdiv(cols, block_cols))
    wanted = 4 if INTERPRET else 8 * num_multiprocessors(device)
    splits = min(num_tiles, triton.cdiv(wanted, num_blocks))
    # Splits that are all there: the last one must not start beyond the end.
    splits = triton.cdiv(num_tiles, triton.cdiv(num_tiles, splits))
    return Walk(keep_cols, block_rows, block_cols, num_blocks, num_tiles, splits)


@triton.jit
def wide(number):
    """A scalar as int64 [1, 1]; in the interpreter, scalars are plain numbers without .to()."""
    return tl.zeros((1, 1), dtype=tl.int64) + number


@triton.jit
def tile_at(
    block, tile, num_rows, num_cols, KEEP_COLS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr
):
    """(group [1, 1], rows [BLOCK_ROWS, 1], cols [1, BLOCK_COLS], mask) of a tile; int64 but for cols."""
    if KEEP_COLS:
        group = wide(0)
        first_row, first_col = tile, block * BLOCK_COLS
    else:
        group = wide(block)
        col_tiles = tl.cdiv(num_cols, BLOCK_COLS)
        first_row, first_col = tile // col_tiles, tile % col_tiles * BLOCK_COLS
    rows = wide(first_row) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    cols = (first_col + tl.arange(0, BLOCK_COLS))[None, :]
    return group, rows, cols, (rows < num_rows) & (cols < num_cols)


@triton.jit
def load_tile(ptr, group, rows, cols, mask, group_stride, row_stride, col_stride):
    """fp32 [BLOCK_ROWS, BLOCK_COLS], 0 outside of mask"""
    offsets = group * group_stride + rows * row_stride + cols.to(tl.int64) * col_stride
    return tl.load(ptr + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def store_tile(ptr, values, group, rows, cols, mask, num_channels, num_cols, KEEP_COLS: tl.constexpr):
    """Into a result, which is [batch, channels, positions] or, with channels last, [batch, positions, channels]."""
    row = rows if KEEP_COLS else rows * num_channels + group
    offsets = row * num_cols + cols
    tl.store(ptr + offsets, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def channels_of(group, cols, num_cols, KEEP_COLS: tl.constexpr):
    """(channel, mask), each [1, BLOCK_COLS] with channels last, and else [1, 1]"""
    if KEEP_COLS:
        channel, mask = cols.to(tl.int64), cols < num_cols
    else:
        channel, mask = group, group >= 0
    return channel, mask


@triton.jit
def sum_over(values, KEEP_COLS: tl.constexpr):
    """[1, BLOCK_COLS] sums of columns, or [1, 1] the sum of everything"""
    sums = tl.sum(values, axis=0, keep_dims=True)
    if not KEEP_COLS:
        sums = tl.sum(sums, axis=1, keep_dims=True)
    return sums


@triton.jit
def load_channel(ptr, channel, mask, stride, ABSENT: tl.constexpr):
    """fp32 values of a parameter at `channel`, ABSENT where there is no parameter"""
    if ptr is not None:
        values = tl.load(ptr + channel * stride, mask=mask, other=0).to(tl.float32)
    else:
        values = tl.full(channel.shape, ABSENT, tl.float32)
    return values
