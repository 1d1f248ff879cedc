"""Launches attention's forward kernel; the door to the backward pass."""

from .attention_backward import attention_backward
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
from .attention_warpgroup import attention_forward_warpgroup, warpgroups_take
from .machine import build, machine_of

__all__ = ["attention_backward", "attention_forward"]

# (warps, row tiles, keys, stages): the largest that spills no register and, up to dim 128, leaves room for two blocks.
# A first guess, not yet timed.
FORWARD_TILES = {
    "float32": {64: (4, 1, 32, 2), 128: (4, 1, 32, 2), 192: (4, 1, 16, 2), 256: (2, 1, 16, 2)},
    "float32, small shared memory": {64: (4, 1, 32, 2), 128: (4, 1, 16, 2), 192: (4, 1, 16, 2), 256: (2, 1, 16, 2)},
    "16 bits": {64: (4, 2, 32, 3), 128: (4, 2, 32, 2), 192: (8, 1, 32, 2), 256: (8, 1, 32, 2)},
    "16 bits, small shared memory": {64: (4, 2, 32, 2), 128: (4, 2, 32, 2), 192: (4, 1, 32, 2), 256: (4, 1, 16, 2)},
}


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
    output 0 and lse -inf. alibi_slopes and windows are not for these kernels (the op's capability table says so).
    Raises ValueError for a head_dim or value_dim above 256.
    """
    batch, heads, len_q, head_dim = query.shape
    kv_heads, len_k, value_dim = value.shape[1:]
    if lse.numel() == 0:
        return
    if len_k == 0:
        output.zero_()
        lse.fill_(float("-inf"))
        return
    machine = machine_of(query)
    if warpgroups_take(machine, query, key, value, attn_mask, dropout_p, scale):
        attention_forward_warpgroup(machine, query, key, value, is_causal, scale, output, lse)
        return
    tile = tile_from(FORWARD_TILES, head_dim, value_dim, query.dtype, machine.shared_memory)
    base = to_base_2(attn_mask, query.dtype)
    key_bytes, value_bytes = pitch(head_dim, query.dtype), pitch(value_dim, query.dtype)
    machine.launch(
        build(
            "attention",
            SCALAR=query.dtype,
            HEAD_DIM=padded_dim(head_dim),
            VALUE_DIM=padded_dim(value_dim),
            WARPS=tile.warps,
            ROW_TILES=tile.row_tiles,
            BLOCK_K=tile.columns,
            STAGES=tile.stages,
        ),
        "attention_forward_kernel",
        -(-len_q // tile.rows) * batch * heads,
        32 * tile.warps,
        (
            query,
            key,
            value,
            attn_mask,
            rng_state,
            output,
            lse,
            *query.stride(),
            *key.stride(),
            *value.stride(),
            *mask_strides(attn_mask),
            is_aligned(query),
            is_aligned(key),
            is_aligned(value),
            mask_kind(attn_mask),
            batch,
            heads,
            heads // kv_heads,
            heads_per_section(key, value),
            len_q,
            len_k,
            head_dim,
            value_dim,
            is_causal,
            score_scale(scale, base),
            base,
            dropout_threshold(dropout_p),
            1.0 / (1.0 - dropout_p),
        ),
        tile.rows * max(key_bytes, value_bytes) + tile.stages * tile.columns * (key_bytes + value_bytes),
    )
