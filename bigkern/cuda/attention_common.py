"""What attention's launchers of both directions share: tiles, padded dimensions, what kernels are told of tensors."""

import math
from typing import NamedTuple

import torch

MAX_HEAD_DIM = 256
# Heads are worked through in sections whose keys and values stay in the second-level cache (40 MB and more) together.
SECTION_BYTES = 16 * 1024 * 1024


class Tile(NamedTuple):
    """A block has `warps` warps of 16 * row_tiles rows each, and walks over tiles of `columns` in `stages` buffers."""

    warps: int
    row_tiles: int
    columns: int
    stages: int

    @property
    def rows(self):
        return 16 * self.warps * self.row_tiles


def padded_dim(dim: int) -> int:
    """The columns of a tile for `dim`: each multiple of 64 is a build of its own."""
    if dim > MAX_HEAD_DIM:
        raise ValueError(f"attention: head_dim and value_dim must be at most {MAX_HEAD_DIM}, got {dim}")
    return -(-dim // 64) * 64


def tile_from(table, head_dim: int, value_dim: int, dtype: torch.dtype, shared_memory: int) -> Tile:
    """The entry of a kernel's table {kind of chip or dtype: {the larger dim, padded: tile}}."""
    kind = "float32" if dtype == torch.float32 else "16 bits"
    if shared_memory < 160 * 1024:
        kind += ", small shared memory"
    return Tile(*table[kind][max(padded_dim(head_dim), padded_dim(value_dim))])


def pitch(dim: int, dtype: torch.dtype) -> int:
    """Bytes from row to row of a tile in shared memory: kPitch of attention_common.cuh."""
    return padded_dim(dim) * dtype.itemsize + 16


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether rows are contiguous and all start at multiples of 16 bytes, as 16-byte copies ask."""
    strides = [stride for stride, size in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True) if size > 1]
    is_contiguous = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return is_contiguous and tensor.data_ptr() % 16 == 0 and all(s * tensor.element_size() % 16 == 0 for s in strides)


def mask_kind(attn_mask: torch.Tensor | None) -> int:
    """MaskKind of attention_common.cuh."""
    if attn_mask is None:
        return 0
    return {torch.bool: 1, torch.float32: 2}.get(attn_mask.dtype, 3)


def mask_strides(attn_mask: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()


def to_base_2(attn_mask: torch.Tensor | None, dtype: torch.dtype) -> float:
    """By what kernels multiply scores before they take 2 to their power: 1 where scores are powers of two already.

    Scores are in nats under an additive mask, because one of torch.finfo.min would overflow in base 2, and one of -1e9
    would round differently in the two directions. For float32, because its users see the digits that the change of
    base costs.
    """
    return math.log2(math.e) if mask_kind(attn_mask) >= 2 or dtype == torch.float32 else 1.0


def score_scale(scale: float, base: float) -> float:
    """From dot products to scores, for scores of this `to_base_2`."""
    return scale if base != 1.0 else scale * math.log2(math.e)


def dropout_threshold(dropout_p: float) -> int:
    """A probability is kept when its Philox word is at or above this."""
    return int(dropout_p * 2**32)


def heads_per_section(key: torch.Tensor, value: torch.Tensor) -> int:
    """Heads of key and value that fill the second-level cache."""
    head_bytes = key.shape[2] * (key.shape[3] + value.shape[3]) * key.element_size()
    return max(1, SECTION_BYTES // head_bytes)
