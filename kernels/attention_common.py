"""What the attention kernels of both directions share: dot products, tile loads, masks and dropout."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import INTERPRET, shared_memory_of

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MAX_HEAD_DIM = 256
ROW_PADDING = tl.constexpr(128)  # of the backward's row statistics


class AttentionTile(NamedTuple):
    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


def padded_dim(dim):
    """The block that holds `dim` columns: a power of two, and at least the 16 that tl.dot asks for."""
    if dim > MAX_HEAD_DIM:
        raise ValueError(f"attention: head_dim and value_dim must be at most {MAX_HEAD_DIM}, got {dim}")
    return max(16, triton.next_power_of_2(dim))


def tile_from(table, head_dim, value_dim, dtype, extras, arch):
    """The entry of a kernel's tile table: {kind of chip or dtype: {the larger dim, padded: tile}}.

    Extras ("", "masked" or "window", see `extras_of`) need registers, so a kind may have entries for them of their own.
    """
    if INTERPRET:  # small, so that short test sequences cross every kind of tile border
        return AttentionTile(32, 16, 1, 1)
    if dtype == torch.float32:
        kind = "float32"
    elif shared_memory_of(arch) < 160 * 1024:
        kind = "sm_86"
    else:
        kind = "sm_80" if arch < 90 else "sm_90" if arch < 100 else "sm_100"
    kinds = {"": (kind,), "masked": (f"{kind}, masked", kind), "window": (f"{kind}, window", f"{kind}, masked", kind)}
    by_dim = next(table[kind] for kind in kinds[extras] if kind in table)
    return AttentionTile(*by_dim[max(64, padded_dim(head_dim), padded_dim(value_dim))])


def extras_of(attn_mask, alibi_slopes, has_window, dropout_p):
    """What a kernel needs registers for beside its products."""
    if has_window:
        return "window"
    return "masked" if attn_mask is not None or alibi_slopes is not None or dropout_p > 0.0 else ""


def mask_kind(attn_mask):
    if attn_mask is None:
        return "none"
    return "bool" if attn_mask.dtype == torch.bool else "additive"


def scores_in_nats(kind, dtype):
    """Whether the kernels count scores in base e; else in base 2, because exp2 is one instruction and exp is two.

    Under an additive mask, because one of torch.finfo.min would overflow in base 2, and one of -1e9 would round
    differently in the two directions. For float32, because its users see the digits that the change of base costs.
    """
    return kind == "additive" or dtype == torch.float32


def window_arguments(is_causal, window_left, window_right, len_q, len_k):
    """(left, right, whether there is a window) as kernels take them: bounds that hide nothing in place of none."""
    has_window = window_left >= 0 or window_right >= 0
    left = min(window_left, len_q) if window_left >= 0 else len_q
    right = 0 if is_causal else min(window_right, len_k) if window_right >= 0 else len_k
    return left, right, has_window


def alibi_strides(alibi_slopes):
    return (0, 0) if alibi_slopes is None else alibi_slopes.stride()


def units_per_nat(in_nats):
    return 1.0 if in_nats else LOG2E.value


def dropout_threshold(dropout_p):
    """A probability is kept when its Philox word is at or above this."""
    return int(dropout_p * 2**32)


@triton.jit
def sequence_of(cu_seqlens_ptr, sequence, total):
    """(first row, number of rows) of one of the sequences that are packed into `total` rows."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + sequence), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + sequence + 1), start), total)
    return start.to(tl.int64), end - start


@triton.jit
def dot(a, b, acc, UPCAST_DOT: tl.constexpr):
    if UPCAST_DOT:  # triton's interpreter multiplies the bit patterns of bf16, and fp32 holds every bf16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def exp_score(score, IN_NATS: tl.constexpr):
    if IN_NATS:
        score *= LOG2E
    return tl.exp2(score)


@triton.jit
def exp_shifted_score(score, MASK_KIND: tl.constexpr, IN_NATS: tl.constexpr):
    """The probability of a score from which lse is already subtracted."""
    if MASK_KIND == "additive":  # no probability is above 1, but a mask of -1e9 rounds lse that far off
        score = tl.minimum(score, 0.0)
    return exp_score(score, IN_NATS)


@triton.jit
def tile_offsets(rows, columns, row_stride, column_stride):
    # 64-bit, since a row index times its stride passes 2^31 in long sequences
    return rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride


@triton.jit
def load_tile(ptrs, rows, num_rows, columns, num_columns, CHECK_ROWS: tl.constexpr, CHECK_COLUMNS: tl.constexpr):
    """[rows, columns] of a matrix, zero outside it; a tile that needs no check pays for none."""
    if CHECK_ROWS and CHECK_COLUMNS:
        tile = tl.load(ptrs, mask=(rows < num_rows)[:, None] & (columns < num_columns)[None, :], other=0.0)
    elif CHECK_ROWS:
        tile = tl.load(ptrs, mask=(rows < num_rows)[:, None], other=0.0)
    elif CHECK_COLUMNS:
        tile = tl.load(ptrs, mask=(columns < num_columns)[None, :], other=0.0)
    else:
        tile = tl.load(ptrs)
    return tile


@triton.jit
def mask_scores(
    scores,
    query_index,
    key_index,
    len_q,
    len_k,
    mask_ptr,
    mask_stride_q,
    mask_stride_k,
    alibi_slope,
    window_left,
    window_right,
    MASK_KIND: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    IN_WINDOW: tl.constexpr,
    CHECK_KEYS: tl.constexpr,
):
    """The scores with -inf, or the additive mask's or ALiBi's value added, where one says so.

    The indices come broadcast, [rows, 1] against [1, columns]: one code for a tile of scores and for its transpose.
    """
    if MASK_KIND != "none":
        inside = (query_index < len_q) & (key_index < len_k)
        mask_ptrs = mask_ptr + query_index.to(tl.int64) * mask_stride_q + key_index.to(tl.int64) * mask_stride_k
        mask = tl.load(mask_ptrs, mask=inside, other=0)
        if MASK_KIND == "bool":
            scores = tl.where(mask != 0, scores, float("-inf"))
        else:
            scores += mask.to(tl.float32)
    if HAS_ALIBI:
        scores -= alibi_slope * tl.abs(query_index - key_index).to(tl.float32)
    if CHECK_KEYS:
        scores = tl.where(key_index < len_k, scores, float("-inf"))
    if IS_CAUSAL:
        scores = tl.where(key_index <= query_index, scores, float("-inf"))
    if IN_WINDOW:
        sees = (key_index >= query_index - window_left) & (key_index <= query_index + window_right)
        scores = tl.where(sees, scores, float("-inf"))
    return scores


@triton.jit
def load_alibi_slope(alibi_ptr, batch, head, stride_batch, stride_head, HAS_ALIBI: tl.constexpr, IN_NATS: tl.constexpr):
    """A head's slope, in the unit of the scores."""
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_ptr + batch * stride_batch + head * stride_head)
        if not IN_NATS:
            slope *= LOG2E
    return slope


@triton.jit
def key_bounds(
    start_q,
    len_k,
    window_left,
    window_right,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Of a block of queries: where the keys that one of them sees start, where those that all see do, where these end,
    and where those do. All but the last are multiples of BLOCK_K."""
    visible_start = 0
    full_start = 0
    full_end = len_k // BLOCK_K * BLOCK_K
    visible_end = len_k
    if HAS_WINDOW:
        visible_start = tl.maximum(start_q - window_left, 0) // BLOCK_K * BLOCK_K
        full_start = tl.cdiv(tl.maximum(start_q + BLOCK_Q - 1 - window_left, 0), BLOCK_K) * BLOCK_K
        full_end = tl.maximum(full_start, tl.minimum(full_end, (start_q + window_right + 1) // BLOCK_K * BLOCK_K))
        visible_end = tl.minimum(len_k, start_q + BLOCK_Q + window_right)
    elif IS_CAUSAL:
        full_end = tl.minimum(full_end, (start_q + 1) // BLOCK_K * BLOCK_K)
        visible_end = tl.minimum(len_k, start_q + BLOCK_Q)
    return visible_start, full_start, full_end, visible_end


@triton.jit
def dropout_keep(rng_state_ptr, batch_head, queries, start_k, keep_threshold, BLOCK_K: tl.constexpr):
    """Which of the probabilities [queries, BLOCK_K] dropout keeps (Philox4x32-10: Salmon et al., SC 2011)."""
    seed = tl.load(rng_state_ptr)
    offset = (tl.load(rng_state_ptr + 1) & 0xFFFFFFFF).to(tl.uint32)
    threshold = tl.cast(keep_threshold, tl.uint32)
    # one call draws four words, which belong to four neighbouring keys
    key_quads = start_k // 4 + tl.arange(0, BLOCK_K // 4)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, key_quads[None, :], queries[:, None], tl.cast(batch_head, tl.uint32), offset
    )
    # as bytes, because bringing the four into the order of the keys goes through shared memory
    keep_0 = (word_0 >= threshold).to(tl.int8)
    keep_1 = (word_1 >= threshold).to(tl.int8)
    keep_2 = (word_2 >= threshold).to(tl.int8)
    keep_3 = (word_3 >= threshold).to(tl.int8)
    return tl.interleave(tl.interleave(keep_0, keep_2), tl.interleave(keep_1, keep_3)) != 0
