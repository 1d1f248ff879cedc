"""Launches attention's backward kernels: the row statistics, grad_key and grad_value, grad_query and grad_attn_mask."""

from .attention_common import (
    dropout_threshold,
    heads_per_section,
    is_aligned,
    mask_kind,
    mask_strides,
    padded_dim,
    pitch,
    score_scale,
    tile_from,
    to_base_2,
)
from .attention_warpgroup import attention_backward_warpgroup, backward_warpgroups_take
from .machine import build, machine_of

# The row statistics are padded to whole tiles, so that loading them takes no check.
ROW_PADDING = 128
ROWS_PER_DELTA_BLOCK = 16

# (warps, row tiles of keys, queries, stages): the largest that spills no register. A first guess, not yet timed.
KEY_VALUE_TILES = {
    "float32": {64: (4, 1, 32, 2), 128: (4, 1, 16, 2), 192: (2, 1, 16, 2), 256: (2, 1, 8, 2)},
    "float32, small shared memory": {64: (4, 1, 32, 2), 128: (4, 1, 8, 2), 192: (2, 1, 8, 2), 256: (2, 1, 8, 2)},
    "16 bits": {64: (8, 1, 64, 2), 128: (8, 1, 32, 2), 192: (4, 1, 32, 2), 256: (4, 1, 16, 2)},
    "16 bits, small shared memory": {64: (4, 1, 64, 2), 128: (4, 1, 16, 2), 192: (4, 1, 16, 2), 256: (2, 1, 16, 2)},
}

# (warps, row tiles of queries, keys, stages): likewise.
QUERY_TILES = {
    "float32": {64: (4, 1, 32, 2), 128: (4, 1, 16, 2), 192: (2, 1, 16, 2), 256: (2, 1, 8, 2)},
    "float32, small shared memory": {64: (4, 1, 32, 2), 128: (4, 1, 8, 2), 192: (2, 1, 8, 2), 256: (2, 1, 8, 2)},
    "16 bits": {64: (8, 1, 64, 2), 128: (8, 1, 32, 2), 192: (4, 1, 16, 2), 256: (4, 1, 16, 2)},
    "16 bits, small shared memory": {64: (8, 1, 64, 2), 128: (4, 1, 32, 2), 192: (4, 1, 16, 2), 256: (2, 1, 16, 2)},
}


def attention_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    attn_mask,
    output,
    lse,
    rng_state,
    dropout_p,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    needs_mask_grad,
    grad_query,
    grad_key,
    grad_value,
    grad_attn_mask,
):
    """Gradients of attention_forward, whose shapes and dtypes hold; grad_lse may be None.

    Writes grad_query, grad_key, grad_value (contiguous, shaped as their inputs) and, when needs_mask_grad, the dense
    grad_attn_mask [batch, heads, len_q, len_k] in attn_mask's dtype. Rows that see no key get gradient 0. Raises
    ValueError for a head_dim or value_dim above 256.
    """
    batch, heads, len_q, head_dim = query.shape
    kv_heads, len_k, value_dim = value.shape[1:]
    if lse.numel() == 0 or len_k == 0 or batch == 0:
        for grad in (grad_query, grad_key, grad_value):
            grad.zero_()
        return
    if needs_mask_grad and is_causal:
        grad_attn_mask.zero_()  # the kernel skips the tiles above the diagonal

    machine = machine_of(query)
    dtype = query.dtype
    base = to_base_2(attn_mask, dtype)
    padded_len_q = -(-len_q // ROW_PADDING) * ROW_PADDING
    statistics = lse.new_empty((2, batch, heads, padded_len_q))
    shift, delta = statistics
    machine.launch(
        build("attention_delta", SCALAR=dtype),
        "attention_backward_delta_kernel",
        batch * heads * padded_len_q // ROWS_PER_DELTA_BLOCK,
        128,
        (
            grad_output,
            None if grad_lse is None else grad_lse.contiguous(),
            output,
            lse.contiguous(),
            shift,
            delta,
            *grad_output.stride(),
            *output.stride(),
            is_aligned(grad_output) and is_aligned(output),
            heads,
            len_q,
            padded_len_q,
            value_dim,
            score_scale(1.0, base),
        ),
    )
    if backward_warpgroups_take(machine, grad_output, query, key, value, attn_mask, dropout_p, scale):
        grads = (grad_query, grad_key, grad_value)
        attention_backward_warpgroup(machine, grad_output, query, key, value, statistics, is_causal, scale, *grads)
        return

    keys_tile, queries_tile = (
        tile_from(table, head_dim, value_dim, dtype, machine.shared_memory) for table in (KEY_VALUE_TILES, QUERY_TILES)
    )
    built = build(
        "attention_backward",
        SCALAR=dtype,
        HEAD_DIM=padded_dim(head_dim),
        VALUE_DIM=padded_dim(value_dim),
        KEY_WARPS=keys_tile.warps,
        KEY_ROW_TILES=keys_tile.row_tiles,
        BLOCK_Q=keys_tile.columns,
        QUERY_WARPS=queries_tile.warps,
        QUERY_ROW_TILES=queries_tile.row_tiles,
        BLOCK_K=queries_tile.columns,
        STAGES=keys_tile.stages,
    )
    problem = (
        query,
        key,
        value,
        attn_mask,
        rng_state,
        grad_output,
        shift,
        delta,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *mask_strides(attn_mask),
        *grad_output.stride(),
        is_aligned(query),
        is_aligned(key),
        is_aligned(value),
        is_aligned(grad_output),
        mask_kind(attn_mask),
        batch,
        heads,
        heads // kv_heads,
        heads_per_section(key, value),
        len_q,
        padded_len_q,
        len_k,
        head_dim,
        value_dim,
        is_causal,
        scale,
        score_scale(scale, base),
        base,
        dropout_threshold(dropout_p),
        1.0 / (1.0 - dropout_p),
    )
    row_bytes = pitch(head_dim, dtype) + pitch(value_dim, dtype)
    # 2 * dim / 8 * 4 registers hold both sums, up to 128; beyond that each gradient has blocks of its own
    parts = 1 if padded_dim(head_dim) + padded_dim(value_dim) <= 256 else 2
    machine.launch(
        built,
        "attention_backward_key_value_kernel",
        parts * -(-len_k // keys_tile.rows) * batch * kv_heads,
        32 * keys_tile.warps,
        (*problem, grad_key, grad_value),
        (keys_tile.rows + keys_tile.stages * keys_tile.columns) * row_bytes + keys_tile.stages * keys_tile.columns * 8,
    )
    machine.launch(
        built,
        "attention_backward_query_kernel",
        -(-len_q // queries_tile.rows) * batch * heads,
        32 * queries_tile.warps,
        (*problem, grad_query, grad_attn_mask if needs_mask_grad else None),
        (queries_tile.rows + queries_tile.stages * queries_tile.columns) * row_bytes,
    )
