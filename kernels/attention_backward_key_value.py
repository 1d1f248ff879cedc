"""Attention's gradients of key and value: one program owns a block of keys and walks over the queries."""

import triton
import triton.language as tl

from .attention_common import (
    ROW_PADDING,
    dot,
    dropout_keep,
    exp_shifted_score,
    load_alibi_slope,
    load_tile,
    mask_scores,
    sequence_of,
    tile_offsets,
)

# (block_q, block_k, num_warps, num_stages): the largest that spills no register (but at 256, where every one does);
# the two accumulators of block_k rows decide. A first guess, not yet timed.
KEY_VALUE_TILES = {
    "float32": {64: (32, 32, 8, 1), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
    "sm_80": {64: (64, 128, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "sm_80, masked": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "sm_80, window": {64: (32, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "sm_86": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "sm_90": {64: (64, 128, 8, 2), 128: (64, 128, 8, 2), 256: (32, 64, 8, 2)},
    "sm_90, masked": {64: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (32, 64, 8, 2)},
    "sm_100": {64: (64, 128, 8, 2), 128: (64, 128, 8, 2), 256: (32, 64, 8, 2)},
}


@triton.jit(do_not_specialize=["keep_threshold"])
def attention_backward_key_value_kernel(
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
    grad_key_ptr,
    grad_value_ptr,
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
    kv_heads,
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
    BLOCK_DIAGONAL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASK_KIND: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    CHECK_QUERIES: tl.constexpr,
    IN_NATS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PACKED: tl.constexpr,
):
    """grad_key and grad_value of BLOCK_K keys, summed over the queries of all the heads that share them."""
    num_k_blocks = tl.cdiv(len_k, BLOCK_K)
    start_k = tl.program_id(0) % num_k_blocks * BLOCK_K
    batch_kv_head = tl.program_id(0) // num_k_blocks
    batch = (batch_kv_head // kv_heads).to(tl.int64)
    kv_head = (batch_kv_head % kv_heads).to(tl.int64)

    stats_step = padded_len_q  # from head to head
    stats_start_of_first = tl.cast(batch_kv_head * group_size, tl.int64) * padded_len_q
    grad_start = batch_kv_head.to(tl.int64) * len_k
    grad_step = 1
    if PACKED:  # as in the forward kernel
        first_q, len_q = sequence_of(cu_seqlens_q_ptr, batch, total_q)
        first_k, len_k = sequence_of(cu_seqlens_k_ptr, batch, total_k)
        query_ptr += first_q * query_stride_len
        grad_output_ptr += first_q * grad_output_stride_len
        key_ptr += first_k * key_stride_len
        value_ptr += first_k * value_stride_len
        stats_start_of_first = kv_head * group_size * padded_len_q + first_q + batch * ROW_PADDING
        grad_start = first_k * kv_heads + kv_head
        grad_step = kv_heads
        len_q = tl.where(start_k < len_k, len_q, 0)

    keys = start_k + tl.arange(0, BLOCK_K)
    dims = tl.arange(0, BLOCK_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE)

    key_ptrs = key_ptr + batch * key_stride_batch + kv_head * key_stride_head
    key_ptrs += tile_offsets(keys, dims, key_stride_len, key_stride_dim)
    key = load_tile(key_ptrs, keys, len_k, dims, HEAD_DIM, True, HEAD_DIM != BLOCK_DIM)
    value_ptrs = value_ptr + batch * value_stride_batch + kv_head * value_stride_head
    value_ptrs += tile_offsets(keys, value_dims, value_stride_len, value_stride_dim)
    value = load_tile(value_ptrs, keys, len_k, value_dims, VALUE_DIM, True, VALUE_DIM != BLOCK_VALUE)

    grad_key = tl.zeros([BLOCK_K, BLOCK_DIM], tl.float32)
    grad_value = tl.zeros([BLOCK_K, BLOCK_VALUE], tl.float32)

    visible_start = 0  # the first query tile that sees any of these keys
    full_start = 0  # the first query tile of which every row sees every key
    full_end = len_q  # and one past the last of them
    visible_end = len_q
    if HAS_WINDOW:
        visible_start = tl.maximum(start_k - window_right, 0) // BLOCK_DIAGONAL * BLOCK_DIAGONAL
        full_start = tl.cdiv(tl.maximum(start_k + BLOCK_K - 1 - window_right, 0), BLOCK_Q) * BLOCK_Q
        visible_end = tl.minimum(len_q, start_k + BLOCK_K + window_left)
        # within len_q, the last full tile may reach beyond it; at a window's end it may not
        full_end = tl.where(start_k + window_left + 1 >= len_q, len_q, (start_k + window_left + 1) // BLOCK_Q * BLOCK_Q)
        full_end = tl.maximum(full_start, full_end)
    elif IS_CAUSAL:
        visible_start = start_k // BLOCK_DIAGONAL * BLOCK_DIAGONAL
        full_start = tl.cdiv(start_k + BLOCK_K - 1, BLOCK_Q) * BLOCK_Q

    HAS_DIAGONAL: tl.constexpr = IS_CAUSAL or HAS_WINDOW or HAS_DROPOUT or MASK_KIND != "none"
    for group_index in range(group_size):
        head = kv_head * group_size + group_index
        batch_head = batch_kv_head * group_size + group_index
        query_head_ptr = query_ptr + batch * query_stride_batch + head * query_stride_head
        grad_output_head_ptr = grad_output_ptr + batch * grad_output_stride_batch + head * grad_output_stride_head
        stats_start = stats_start_of_first + tl.cast(group_index, tl.int64) * stats_step
        alibi_slope = load_alibi_slope(
            alibi_ptr, batch, head, alibi_stride_batch, alibi_stride_head, HAS_ALIBI, IN_NATS
        )
        mask_head_ptr = mask_ptr
        if MASK_KIND != "none":
            mask_head_ptr += batch * mask_stride_batch + head * mask_stride_head

        # The tiles on the diagonal are smaller: less work is masked away, and the mask needs registers.
        # Without causality their loop is empty, but in a kernel without it ptxas serialises wgmma around mask loads.
        for PART in tl.static_range(0 if HAS_DIAGONAL else 1, 3 if HAS_WINDOW else 2):
            if PART == 0:
                tile_rows = tl.arange(0, BLOCK_DIAGONAL)
                tiles_start, tiles_end, step = visible_start, tl.minimum(full_start, visible_end), BLOCK_DIAGONAL
            elif PART == 1:
                tile_rows = tl.arange(0, BLOCK_Q)
                tiles_start, tiles_end, step = full_start, full_end, BLOCK_Q
            else:
                tile_rows = tl.arange(0, BLOCK_DIAGONAL)
                tiles_start, tiles_end, step = full_end, visible_end, BLOCK_DIAGONAL
            query_ptrs = query_head_ptr + tile_offsets(
                tiles_start + tile_rows, dims, query_stride_len, query_stride_dim
            )
            grad_output_ptrs = grad_output_head_ptr + tile_offsets(
                tiles_start + tile_rows, value_dims, grad_output_stride_len, grad_output_stride_dim
            )
            for start_q in range(tiles_start, tiles_end, step):
                queries = start_q + tile_rows
                query = load_tile(query_ptrs, queries, len_q, dims, HEAD_DIM, CHECK_QUERIES, HEAD_DIM != BLOCK_DIM)
                shift = tl.load(shift_ptr + stats_start + start_q + tile_rows)
                scores = dot(key, tl.trans(query), None, UPCAST_DOT)  # [BLOCK_K, tile_rows]
                # keys beyond len_k go unmasked: they only reach rows that are never stored
                scores = mask_scores(
                    scores * score_scale - shift[None, :],
                    queries[None, :],
                    keys[:, None],
                    len_q,
                    len_k,
                    mask_head_ptr,
                    mask_stride_q,
                    mask_stride_k,
                    alibi_slope,
                    window_left,
                    window_right,
                    MASK_KIND,
                    HAS_ALIBI,
                    PART != 1 and not HAS_WINDOW,
                    PART != 1 and HAS_WINDOW,
                    False,
                )
                probs = exp_shifted_score(scores, MASK_KIND, IN_NATS)

                kept_probs = probs
                if HAS_DROPOUT:
                    keep = dropout_keep(rng_state_ptr, batch_head, queries, start_k, keep_threshold, BLOCK_K)
                    keep = tl.trans(keep)
                    kept_probs = tl.where(keep, probs, 0.0)
                grad_output = load_tile(
                    grad_output_ptrs, queries, len_q, value_dims, VALUE_DIM, CHECK_QUERIES, VALUE_DIM != BLOCK_VALUE
                )
                grad_value = dot(kept_probs.to(grad_output.dtype), grad_output, grad_value, UPCAST_DOT)

                grad_probs = dot(value, tl.trans(grad_output), None, UPCAST_DOT)  # [BLOCK_K, tile_rows]
                if HAS_DROPOUT:
                    grad_probs = tl.where(keep, grad_probs * keep_scale, 0.0)
                delta = tl.load(delta_ptr + stats_start + start_q + tile_rows)
                grad_scores = probs * (grad_probs - delta[None, :])
                grad_key = dot(grad_scores.to(query.dtype), query, grad_key, UPCAST_DOT)

                query_ptrs += tl.cast(query_stride_len, tl.int64) * step
                grad_output_ptrs += tl.cast(grad_output_stride_len, tl.int64) * step

    grad_rows = grad_start + keys.to(tl.int64) * grad_step
    inside = (keys < len_k)[:, None]
    grad_key_ptrs = grad_key_ptr + tile_offsets(grad_rows, dims, HEAD_DIM, 1)
    grad_key = (grad_key * scale).to(grad_key_ptr.dtype.element_ty)
    tl.store(grad_key_ptrs, grad_key, mask=inside & (dims < HEAD_DIM)[None, :])
    grad_value_ptrs = grad_value_ptr + tile_offsets(grad_rows, value_dims, VALUE_DIM, 1)
    grad_value = (grad_value * keep_scale).to(grad_value_ptr.dtype.element_ty)
    tl.store(grad_value_ptrs, grad_value, mask=inside & (value_dims < VALUE_DIM)[None, :])
