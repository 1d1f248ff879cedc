"""Attention on GPUs: the backward pass.

Three kernels and no atomics, so the gradients are the same on every run: the row statistics here, then grad_key and
grad_value, then grad_query and the gradient of the mask. Probabilities are recomputed from lse (Dao et al., 2022).
"""

import torch
import triton
import triton.language as tl

from .attention_backward_key_value import KEY_VALUE_TILES, attention_backward_key_value_kernel
from .attention_backward_query import QUERY_TILES, attention_backward_query_kernel
from .attention_common import (
    ROW_PADDING,
    alibi_strides,
    dropout_threshold,
    extras_of,
    load_tile,
    mask_kind,
    padded_dim,
    scores_in_nats,
    sequence_of,
    tile_from,
    tile_offsets,
    units_per_nat,
    window_arguments,
)
from .common import COMPILE_OPTIONS, INTERPRET, arch_of, on_device_of

BLOCK_DELTA = 64


@triton.jit
def attention_backward_delta_kernel(
    grad_output_ptr,
    grad_lse_ptr,
    output_ptr,
    lse_ptr,
    shift_ptr,
    delta_ptr,
    cu_seqlens_q_ptr,
    grad_output_stride_batch,
    grad_output_stride_head,
    grad_output_stride_len,
    grad_output_stride_dim,
    output_stride_batch,
    output_stride_head,
    output_stride_len,
    output_stride_dim,
    heads,
    len_q,
    total_q,
    padded_len_q,
    units_per_nat,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Per query row: delta, and the shift for which exp(score - shift) is the probability."""
    num_q_blocks = tl.cdiv(len_q, ROW_PADDING) * (ROW_PADDING // BLOCK_Q)
    batch_head = (tl.program_id(0) // num_q_blocks).to(tl.int64)
    batch = batch_head // heads
    head = batch_head % heads
    query_rows = tl.program_id(0) % num_q_blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    value_dims = tl.arange(0, BLOCK_VALUE)
    lse_start = batch_head * len_q
    stats_start = batch_head * padded_len_q
    if PACKED:
        first_q, len_q = sequence_of(cu_seqlens_q_ptr, batch, total_q)
        output_ptr += first_q * output_stride_len
        grad_output_ptr += first_q * grad_output_stride_len
        lse_start = head * total_q + first_q
        stats_start = head * padded_len_q + first_q + batch * ROW_PADDING
    inside = query_rows < len_q

    output_ptrs = output_ptr + batch * output_stride_batch + head * output_stride_head
    output_ptrs += tile_offsets(query_rows, value_dims, output_stride_len, output_stride_dim)
    output = load_tile(output_ptrs, query_rows, len_q, value_dims, VALUE_DIM, True, VALUE_DIM != BLOCK_VALUE)
    grad_output_ptrs = grad_output_ptr + batch * grad_output_stride_batch + head * grad_output_stride_head
    grad_output_ptrs += tile_offsets(query_rows, value_dims, grad_output_stride_len, grad_output_stride_dim)
    grad_output = load_tile(grad_output_ptrs, query_rows, len_q, value_dims, VALUE_DIM, True, VALUE_DIM != BLOCK_VALUE)
    lse = tl.load(lse_ptr + lse_start + query_rows, mask=inside, other=float("-inf"))
    sees_no_key = lse == float("-inf")

    delta = tl.sum(output.to(tl.float32) * grad_output.to(tl.float32), 1)
    if grad_lse_ptr is not None:  # grad_scores = probs * (grad_probs - delta + grad_lse)
        grad_lse = tl.load(grad_lse_ptr + lse_start + query_rows, mask=inside, other=0.0)
        delta -= tl.where(sees_no_key, 0.0, grad_lse)  # there lse is a constant, and its gradient may well be NaN
    shift = tl.where(sees_no_key, float("inf"), lse * units_per_nat)  # +inf gives such a row probability 0

    stats_rows = stats_start + query_rows
    if PACKED:  # what follows belongs to the next sequence
        padded = query_rows < tl.cdiv(len_q, ROW_PADDING) * ROW_PADDING
        tl.store(shift_ptr + stats_rows, shift, mask=padded)
        tl.store(delta_ptr + stats_rows, delta, mask=padded)
    else:
        tl.store(shift_ptr + stats_rows, shift)
        tl.store(delta_ptr + stats_rows, delta)


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
    if lse.numel() == 0 or key.shape[2] == 0 or key.shape[0] == 0:
        for grad in (grad_query, grad_key, grad_value):
            grad.zero_()
        return
    lengths = (None, None, query.shape[2], key.shape[2])
    options = (dropout_p, is_causal, scale, alibi_slopes, window_left, window_right, needs_mask_grad)
    inputs = (grad_output, grad_lse, query, key, value, attn_mask, output, lse, rng_state)
    launch_backward(*inputs, *lengths, *options, grad_query, grad_key, grad_value, grad_attn_mask)


def launch_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    attn_mask,
    output,
    lse,
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
    needs_mask_grad,
    grad_query,
    grad_key,
    grad_value,
    grad_attn_mask,
):
    """Of whole batches, or with cu_seqlens of packed sequences: then inputs and output are [1, heads, total, dim],
    len_q and len_k the longest sequence's, and the gradients [total, heads, dim]."""
    batch, heads, total_q, head_dim = query.shape
    kv_heads, total_k, value_dim = value.shape[1:]
    is_packed = cu_seqlens_q is not None
    # The row statistics are padded to whole tiles of every block_q, so that loading them takes no check.
    row_blocks = triton.cdiv(len_q, ROW_PADDING.value) * (ROW_PADDING.value // BLOCK_DELTA)
    padded_len_q = row_blocks * BLOCK_DELTA
    statistics_shape = (2, batch, heads, padded_len_q)
    if is_packed:
        batch = cu_seqlens_q.shape[0] - 1
        padded_len_q = total_q + batch * ROW_PADDING.value
        statistics_shape = (2, heads, padded_len_q)
    left, right, has_window = window_arguments(is_causal, window_left, window_right, len_q, len_k)
    if needs_mask_grad and (is_causal or has_window):
        grad_attn_mask.zero_()  # the kernel skips the tiles that no query sees

    kind = mask_kind(attn_mask)
    in_nats = scores_in_nats(kind, query.dtype)
    shift, delta = torch.empty(statistics_shape, dtype=lse.dtype, device=lse.device)
    inputs = (query, key, value, attn_mask, alibi_slopes, rng_state, cu_seqlens_q, cu_seqlens_k)
    inputs = (*inputs, grad_output, shift, delta)
    strides = (
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *((0, 0, 0, 0) if attn_mask is None else attn_mask.stride()),
        *grad_output.stride(),
        *alibi_strides(alibi_slopes),
    )
    numbers = (
        heads // kv_heads,
        len_q,
        len_k,
        total_q,
        total_k,
        padded_len_q,
        left,
        right,
        scale,
        scale * units_per_nat(in_nats),
        dropout_threshold(dropout_p),
        1.0 / (1.0 - dropout_p),
    )
    dims = (head_dim, value_dim, padded_dim(head_dim), padded_dim(value_dim))
    flags = (kind, alibi_slopes is not None, is_causal, has_window, dropout_p > 0.0)
    extras = extras_of(attn_mask, alibi_slopes, has_window, dropout_p)
    tile_facts = (head_dim, value_dim, query.dtype, extras, arch_of(query.device))
    upcast_dot = INTERPRET and query.dtype == torch.bfloat16

    with on_device_of(query):
        attention_backward_delta_kernel[(row_blocks * batch * heads,)](
            grad_output,
            None if grad_lse is None else grad_lse.contiguous(),
            output,
            lse.contiguous(),
            shift,
            delta,
            cu_seqlens_q,
            *grad_output.stride(),
            *output.stride(),
            heads,
            len_q,
            total_q,
            padded_len_q,
            units_per_nat(in_nats),
            value_dim,
            dims[3],
            BLOCK_DELTA,
            is_packed,
            **COMPILE_OPTIONS,
        )
        tile = tile_from(KEY_VALUE_TILES, *tile_facts)
        attention_backward_key_value_kernel[(triton.cdiv(len_k, tile.block_k) * batch * kv_heads,)](
            *inputs,
            grad_key,
            grad_value,
            *strides,
            kv_heads,
            *numbers,
            *dims,
            max(tile.block_q // 2, 16),
            tile.block_q,
            tile.block_k,
            *flags,
            is_packed or len_q % tile.block_q != 0,
            in_nats,
            upcast_dot,
            is_packed,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **COMPILE_OPTIONS,
        )
        tile = tile_from(QUERY_TILES, *tile_facts)
        attention_backward_query_kernel[(triton.cdiv(len_q, tile.block_q) * batch * heads,)](
            *inputs,
            grad_query,
            grad_attn_mask if needs_mask_grad else None,
            *strides,
            heads,
            *numbers,
            *dims,
            tile.block_q,
            tile.block_k,
            *flags,
            needs_mask_grad,
            in_nats,
            upcast_dot,
            is_packed,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **COMPILE_OPTIONS,
        )
