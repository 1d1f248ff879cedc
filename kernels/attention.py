"""Attention on GPUs: the forward pass, and the door to the backward pass.

FlashAttention (Dao et al., 2022; Dao, 2023): one program owns BLOCK_Q query rows of one head and walks over the keys
with a running softmax, so that the scores never reach memory.
"""

import torch
import triton
import triton.language as tl

from .attention_backward import attention_backward
from .attention_common import (
    LN2,
    alibi_strides,
    dot,
    dropout_keep,
    dropout_threshold,
    exp_score,
    extras_of,
    key_bounds,
    load_alibi_slope,
    load_tile,
    mask_kind,
    mask_scores,
    padded_dim,
    scores_in_nats,
    sequence_of,
    tile_from,
    tile_offsets,
    units_per_nat,
    window_arguments,
)
from .common import COMPILE_OPTIONS, INTERPRET, arch_of, on_device_of

__all__ = ["attention_backward", "attention_forward"]


# (block_q, block_k, num_warps, num_stages): the largest that spills no register. A first guess, not yet timed.
FORWARD_TILES = {
    "float32": {64: (64, 32, 8, 1), 128: (32, 32, 8, 1), 256: (32, 16, 8, 1)},
    "sm_80": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    "sm_86": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    "sm_90": {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 32, 8, 2)},
    "sm_90, masked": {64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 2)},
    "sm_100": {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 32, 8, 2)},
    "sm_100, masked": {64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 2)},
}


@triton.jit(do_not_specialize=["keep_threshold"])
def attention_forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    alibi_ptr,
    rng_state_ptr,
    cu_seqlens_q_ptr,
    cu_seqlens_k_ptr,
    output_ptr,
    lse_ptr,
    query_stride_batch,
    query_stride_head,
    query_stride_len,
    query_stride_dim,
    key_stride_batch,
    key_stride_head,
    key_stride_len,
    key_stride_dim,
    value_stride_batch,
    value_stride_head,
    value_stride_len,
    value_stride_dim,
    mask_stride_batch,
    mask_stride_head,
    mask_stride_q,
    mask_stride_k,
    alibi_stride_batch,
    alibi_stride_head,
    heads,
    group_size,
    len_q,
    len_k,
    total_q,
    total_k,
    window_left,
    window_right,
    score_scale,
    keep_threshold,
    keep_scale,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASK_KIND: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    NEGATIVE_SCALE: tl.constexpr,
    IN_NATS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PACKED: tl.constexpr,
):
    num_q_blocks = tl.cdiv(len_q, BLOCK_Q)
    q_block = tl.program_id(0) % num_q_blocks
    if IS_CAUSAL:  # the last rows see the most keys; starting them first leaves the short programs for the end
        q_block = num_q_blocks - 1 - q_block
    batch_head = tl.program_id(0) // num_q_blocks
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    kv_head = head // group_size
    start_q = q_block * BLOCK_Q

    output_start = batch_head.to(tl.int64) * len_q  # of the rows of output and lse, which lie side by side
    output_step = 1
    lse_start = output_start
    if PACKED:  # len_q and len_k are the longest sequence's: this one's lie behind its first rows
        first_q, len_q = sequence_of(cu_seqlens_q_ptr, batch, total_q)
        first_k, len_k = sequence_of(cu_seqlens_k_ptr, batch, total_k)
        query_ptr += first_q * query_stride_len
        key_ptr += first_k * key_stride_len
        value_ptr += first_k * value_stride_len
        output_start = first_q * heads + head
        output_step = heads
        lse_start = head * total_q + first_q
        len_k = tl.where(start_q < len_q, len_k, 0)

    query_rows = start_q + tl.arange(0, BLOCK_Q)
    key_rows = tl.arange(0, BLOCK_K)
    dims = tl.arange(0, BLOCK_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE)

    query_ptrs = query_ptr + batch * query_stride_batch + head * query_stride_head
    query_ptrs += tile_offsets(query_rows, dims, query_stride_len, query_stride_dim)
    query = load_tile(query_ptrs, query_rows, len_q, dims, HEAD_DIM, True, HEAD_DIM != BLOCK_DIM)

    key_ptrs = key_ptr + batch * key_stride_batch + kv_head * key_stride_head
    key_ptrs += tile_offsets(key_rows, dims, key_stride_len, key_stride_dim)
    value_ptrs = value_ptr + batch * value_stride_batch + kv_head * value_stride_head
    value_ptrs += tile_offsets(key_rows, value_dims, value_stride_len, value_stride_dim)
    if MASK_KIND != "none":
        mask_ptr += batch * mask_stride_batch + head * mask_stride_head

    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_VALUE], tl.float32)

    visible_start, full_start, full_end, visible_end = key_bounds(
        start_q, len_k, window_left, window_right, BLOCK_Q, BLOCK_K, IS_CAUSAL, HAS_WINDOW
    )
    if HAS_WINDOW:
        key_ptrs += visible_start.to(tl.int64) * key_stride_len
        value_ptrs += visible_start.to(tl.int64) * value_stride_len
    alibi_slope = load_alibi_slope(alibi_ptr, batch, head, alibi_stride_batch, alibi_stride_head, HAS_ALIBI, IN_NATS)

    # the tiles at a window's start, then the full ones, then those on the diagonal and at the end: edges alone pay for
    # the checks
    for PART in tl.static_range(0 if HAS_WINDOW else 1, 3):
        if PART == 0:
            tiles_start, tiles_end = visible_start, tl.minimum(full_start, visible_end)
        elif PART == 1:
            tiles_start, tiles_end = full_start, full_end
        else:
            tiles_start, tiles_end = full_end, visible_end
        for start_k in range(tiles_start, tiles_end, BLOCK_K):
            keys = start_k + key_rows
            key = load_tile(key_ptrs, keys, len_k, dims, HEAD_DIM, PART != 1, HEAD_DIM != BLOCK_DIM)
            scores = dot(query, tl.trans(key), None, UPCAST_DOT)  # [BLOCK_Q, BLOCK_K]

            if (PART != 1) or MASK_KIND != "none" or HAS_ALIBI:
                scores = mask_scores(
                    scores * score_scale,
                    query_rows[:, None],
                    keys[None, :],
                    len_q,
                    len_k,
                    mask_ptr,
                    mask_stride_q,
                    mask_stride_k,
                    alibi_slope,
                    window_left,
                    window_right,
                    MASK_KIND,
                    HAS_ALIBI,
                    IS_CAUSAL and PART != 1,
                    HAS_WINDOW and PART != 1,
                    PART != 1,
                )
                new_max = tl.maximum(row_max, tl.max(scores, 1))
                shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf is NaN
                probs = exp_score(scores - shift[:, None], IN_NATS)
            else:  # scaling after the maximum lets scale and shift be one fused multiply-add
                if NEGATIVE_SCALE:
                    new_max = tl.maximum(row_max, tl.min(scores, 1) * score_scale)
                else:
                    new_max = tl.maximum(row_max, tl.max(scores, 1) * score_scale)
                shift = tl.where(new_max == float("-inf"), 0.0, new_max)
                probs = exp_score(scores * score_scale - shift[:, None], IN_NATS)

            rescale = exp_score(row_max - shift, IN_NATS)
            row_sum = row_sum * rescale + tl.sum(probs, 1)
            if HAS_DROPOUT:  # after the sum: lse is the one without dropout
                keep = dropout_keep(rng_state_ptr, batch_head, query_rows, start_k, keep_threshold, BLOCK_K)
                probs = tl.where(keep, probs, 0.0)
            acc = acc * rescale[:, None]
            value = load_tile(value_ptrs, keys, len_k, value_dims, VALUE_DIM, PART != 1, VALUE_DIM != BLOCK_VALUE)
            acc = dot(probs.to(value.dtype), value, acc, UPCAST_DOT)  # [BLOCK_Q, BLOCK_VALUE]

            row_max = new_max
            key_ptrs += tl.cast(key_stride_len, tl.int64) * BLOCK_K
            value_ptrs += tl.cast(value_stride_len, tl.int64) * BLOCK_K

    # a row that saw no key has sum 0: dividing by 1 leaves its output 0 and its lse -inf
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    output = acc * (keep_scale / row_sum)[:, None]
    lse = row_max + tl.log2(row_sum) * LN2 if IN_NATS else (row_max + tl.log2(row_sum)) * LN2

    output_rows = output_start + query_rows.to(tl.int64) * output_step
    output_ptrs = output_ptr + tile_offsets(output_rows, value_dims, VALUE_DIM, 1)
    inside = query_rows < len_q
    tl.store(
        output_ptrs, output.to(output_ptr.dtype.element_ty), mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :]
    )
    tl.store(lse_ptr + lse_start + query_rows, lse, mask=inside)


def attention_forward(
    query,
    key,
    value,
    attn_mask,
    rng_state,
    dropout_p,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    output,
    lse,
):
    """softmax(scale * query @ key^T + attn_mask) @ value, with dropout on the probabilities.

    query [batch, heads, len_q, head_dim], key [batch, kv_heads, len_k, head_dim], value [batch, kv_heads, len_k,
    value_dim], all float32, float16 or bfloat16, any strides. Writes output [batch, heads, len_q, value_dim] and the
    natural log of each row's sum, lse [batch, heads, len_q] float32; both contiguous. A row that sees no key gets
    output 0 and lse -inf. alibi_slopes [batch, heads] float32 or None. Raises ValueError for a head_dim or value_dim
    above 256.
    """
    if lse.numel() == 0:
        return
    if key.shape[2] == 0:
        output.zero_()
        lse.fill_(float("-inf"))
        return
    options = (dropout_p, is_causal, scale, alibi_slopes, window_left, window_right)
    launch_forward(
        query, key, value, attn_mask, rng_state, None, None, query.shape[2], key.shape[2], *options, output, lse
    )


def launch_forward(
    query,
    key,
    value,
    attn_mask,
    rng_state,
    cu_seqlens_q,
    cu_seqlens_k,
    len_q,
    len_k,
    dropout_p,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    output,
    lse,
):
    """Of whole batches, or with cu_seqlens of packed sequences: then query, key and value are [1, heads, total, dim],
    len_q and len_k the longest sequence's, output is [total_q, heads, value_dim] and lse [heads, total_q]."""
    batch, heads, total_q, head_dim = query.shape
    kv_heads, total_k, value_dim = value.shape[1:]
    is_packed = cu_seqlens_q is not None
    if is_packed:
        batch = cu_seqlens_q.shape[0] - 1
    kind = mask_kind(attn_mask)
    in_nats = scores_in_nats(kind, query.dtype)
    left, right, has_window = window_arguments(is_causal, window_left, window_right, len_q, len_k)
    extras = extras_of(attn_mask, alibi_slopes, has_window, dropout_p)
    tile = tile_from(FORWARD_TILES, head_dim, value_dim, query.dtype, extras, arch_of(query.device))
    with on_device_of(query):
        attention_forward_kernel[(triton.cdiv(len_q, tile.block_q) * batch * heads,)](
            query,
            key,
            value,
            attn_mask,
            alibi_slopes,
            rng_state,
            cu_seqlens_q,
            cu_seqlens_k,
            output,
            lse,
            *query.stride(),
            *key.stride(),
            *value.stride(),
            *((0, 0, 0, 0) if attn_mask is None else attn_mask.stride()),
            *alibi_strides(alibi_slopes),
            heads,
            heads // kv_heads,
            len_q,
            len_k,
            total_q,
            total_k,
            left,
            right,
            scale * units_per_nat(in_nats),
            dropout_threshold(dropout_p),
            1.0 / (1.0 - dropout_p),
            head_dim,
            value_dim,
            padded_dim(head_dim),
            padded_dim(value_dim),
            tile.block_q,
            tile.block_k,
            kind,
            alibi_slopes is not None,
            is_causal,
            has_window,
            dropout_p > 0.0,
            scale < 0.0,
            in_nats,
            INTERPRET and query.dtype == torch.bfloat16,
            is_packed,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **COMPILE_OPTIONS,
        )
