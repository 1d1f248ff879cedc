"""Attention's gradients of query and mask: one program owns a block of queries and walks over the keys."""

import triton
import triton.language as tl

from .attention_common import (
    ROW_PADDING,
    dot,
    dropout_keep,
    exp_shifted_score,
    key_bounds,
    load_alibi_slope,
    load_tile,
    mask_scores,
    sequence_of,
    tile_offsets,
)

# (block_q, block_k, num_warps, num_stages): the largest that spills no register. A first guess, not yet timed.
QUERY_TILES = {
    "float32": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
    "sm_80": {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)},
    "sm_86": {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)},
    "sm_90": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)},
    "sm_90, masked": {64: (128, 64, 8, 3), 128: (128, 32, 8, 2), 256: (128, 32, 8, 2)},
    "sm_100": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)},
    "sm_100, window": {64: (128, 32, 8, 2), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)},
}


@triton.jit(do_not_specialize=["keep_threshold"])
def attention_backward_query_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    alibi_ptr,
    rng_state_ptr,
    cu_seqlens_q_ptr,
    cu_seqlens_k_ptr,
    grad_output_ptr,
    shift_ptr,
    delta_ptr,
    grad_query_ptr,
    grad_mask_ptr,
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
    grad_output_stride_batch,
    grad_output_stride_head,
    grad_output_stride_len,
    grad_output_stride_dim,
    alibi_stride_batch,
    alibi_stride_head,
    heads,
    group_size,
    len_q,
    len_k,
    total_q,
    total_k,
    padded_len_q,
    window_left,
    window_right,
    scale,
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
    NEEDS_MASK_GRAD: tl.constexpr,
    IN_NATS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PACKED: tl.constexpr,
):
    """grad_query of BLOCK_Q queries, and their rows of grad_attn_mask."""
    num_q_blocks = tl.cdiv(len_q, BLOCK_Q)
    q_block = tl.program_id(0) % num_q_blocks
    if IS_CAUSAL:  # the longest programs first
        q_block = num_q_blocks - 1 - q_block
    batch_head = tl.program_id(0) // num_q_blocks
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    kv_head = head // group_size
    start_q = q_block * BLOCK_Q

    stats_start = batch_head.to(tl.int64) * padded_len_q
    grad_start = batch_head.to(tl.int64) * len_q
    grad_step = 1
    if PACKED:  # as in the forward kernel
        first_q, len_q = sequence_of(cu_seqlens_q_ptr, batch, total_q)
        first_k, len_k = sequence_of(cu_seqlens_k_ptr, batch, total_k)
        query_ptr += first_q * query_stride_len
        grad_output_ptr += first_q * grad_output_stride_len
        key_ptr += first_k * key_stride_len
        value_ptr += first_k * value_stride_len
        stats_start = head * padded_len_q + first_q + batch * ROW_PADDING
        grad_start = first_q * heads + head
        grad_step = heads
        len_k = tl.where(start_q < len_q, len_k, 0)

    queries = start_q + tl.arange(0, BLOCK_Q)
    key_rows = tl.arange(0, BLOCK_K)
    dims = tl.arange(0, BLOCK_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE)
    inside = queries < len_q

    query_ptrs = query_ptr + batch * query_stride_batch + head * query_stride_head
    query_ptrs += tile_offsets(queries, dims, query_stride_len, query_stride_dim)
    query = load_tile(query_ptrs, queries, len_q, dims, HEAD_DIM, True, HEAD_DIM != BLOCK_DIM)
    grad_output_ptrs = grad_output_ptr + batch * grad_output_stride_batch + head * grad_output_stride_head
    grad_output_ptrs += tile_offsets(queries, value_dims, grad_output_stride_len, grad_output_stride_dim)
    grad_output = load_tile(grad_output_ptrs, queries, len_q, value_dims, VALUE_DIM, True, VALUE_DIM != BLOCK_VALUE)
    stats_rows = stats_start + queries
    if PACKED:  # a block beyond its sequence has no statistics
        shift = tl.load(shift_ptr + stats_rows, mask=inside, other=float("inf"))
        delta = tl.load(delta_ptr + stats_rows, mask=inside, other=0.0)
    else:
        shift = tl.load(shift_ptr + stats_rows)
        delta = tl.load(delta_ptr + stats_rows)
    grad_rows = grad_start + queries.to(tl.int64) * grad_step

    key_ptrs = key_ptr + batch * key_stride_batch + kv_head * key_stride_head
    key_ptrs += tile_offsets(key_rows, dims, key_stride_len, key_stride_dim)
    value_ptrs = value_ptr + batch * value_stride_batch + kv_head * value_stride_head
    value_ptrs += tile_offsets(key_rows, value_dims, value_stride_len, value_stride_dim)
    if MASK_KIND != "none":
        mask_ptr += batch * mask_stride_batch + head * mask_stride_head

    grad_query = tl.zeros([BLOCK_Q, BLOCK_DIM], tl.float32)

    visible_start, full_start, full_end, visible_end = key_bounds(
        start_q, len_k, window_left, window_right, BLOCK_Q, BLOCK_K, IS_CAUSAL, HAS_WINDOW
    )
    if HAS_WINDOW:
        key_ptrs += visible_start.to(tl.int64) * key_stride_len
        value_ptrs += visible_start.to(tl.int64) * value_stride_len
    alibi_slope = load_alibi_slope(alibi_ptr, batch, head, alibi_stride_batch, alibi_stride_head, HAS_ALIBI, IN_NATS)

    # as in the forward kernel
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
            scores = mask_scores(
                scores * score_scale - shift[:, None],
                queries[:, None],
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
            probs = exp_shifted_score(scores, MASK_KIND, IN_NATS)

            value = load_tile(value_ptrs, keys, len_k, value_dims, VALUE_DIM, PART != 1, VALUE_DIM != BLOCK_VALUE)
            grad_probs = dot(grad_output, tl.trans(value), None, UPCAST_DOT)  # [BLOCK_Q, BLOCK_K]
            if HAS_DROPOUT:
                keep = dropout_keep(rng_state_ptr, batch_head, queries, start_k, keep_threshold, BLOCK_K)
                grad_probs = tl.where(keep, grad_probs * keep_scale, 0.0)
            grad_scores = probs * (grad_probs - delta[:, None])
            if NEEDS_MASK_GRAD:
                grad_mask_ptrs = grad_mask_ptr + tile_offsets(grad_rows, keys, len_k, 1)
                grad_mask = grad_scores.to(grad_mask_ptr.dtype.element_ty)
                tl.store(grad_mask_ptrs, grad_mask, mask=inside[:, None] & (keys < len_k)[None, :])
            grad_query = dot(grad_scores.to(key.dtype), key, grad_query, UPCAST_DOT)

            key_ptrs += tl.cast(key_stride_len, tl.int64) * BLOCK_K
            value_ptrs += tl.cast(value_stride_len, tl.int64) * BLOCK_K

    grad_query_ptrs = grad_query_ptr + tile_offsets(grad_rows, dims, HEAD_DIM, 1)
    grad_query = (grad_query * scale).to(grad_query_ptr.dtype.element_ty)
    tl.store(grad_query_ptrs, grad_query, mask=inside[:, None] & (dims < HEAD_DIM)[None, :])
