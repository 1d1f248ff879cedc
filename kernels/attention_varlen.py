"""Attention over packed sequences on GPUs: attention's own kernels, told where each sequence lies."""

from .attention import launch_forward
from .attention_backward import launch_backward


def attention_varlen_forward(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    output,
    lse,
):
    """query [total_q, heads, head_dim], key [total_k, kv_heads, head_dim], value [total_k, kv_heads, value_dim],
    float32, float16 or bfloat16, any strides; cu_seqlens int32 [sequences + 1]. Writes output [total_q, heads,
    value_dim] and lse [heads, total_q] float32, contiguous; zeros and -inf for rows of no sequence."""
    output.zero_()
    lse.fill_(float("-inf"))
    if lse.numel() == 0 or key.shape[0] == 0 or max_seqlen_q == 0 or cu_seqlens_q.shape[0] == 1:
        return
    inputs = (_heads_first(query), _heads_first(key), _heads_first(value), None, None)
    lengths = (cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), max_seqlen_q, max_seqlen_k)
    launch_forward(*inputs, *lengths, 0.0, is_causal, scale, alibi_slopes, window_left, window_right, output, lse)


def attention_varlen_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    output,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    grad_query,
    grad_key,
    grad_value,
):
    """Gradients of attention_varlen_forward, contiguous and shaped as the inputs; zeros for rows of no sequence."""
    for grad in (grad_query, grad_key, grad_value):
        grad.zero_()
    if lse.numel() == 0 or key.shape[0] == 0 or 0 in (max_seqlen_q, max_seqlen_k) or cu_seqlens_q.shape[0] == 1:
        return
    inputs = (_heads_first(grad_output), grad_lse, _heads_first(query), _heads_first(key), _heads_first(value), None)
    lengths = (cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), max_seqlen_q, max_seqlen_k)
    options = (0.0, is_causal, scale, alibi_slopes, window_left, window_right, False)
    grads = (grad_query, grad_key, grad_value, None)
    launch_backward(*inputs, _heads_first(output), lse, None, *lengths, *options, *grads)


def _heads_first(packed):
    """[total, heads, dim] as [1, heads, total, dim]; a batch stride of 0, because every sequence starts from here"""
    total, heads, dim = packed.shape
    strides = packed.stride()
    return packed.as_strided((1, heads, total, dim), (0, strides[1], strides[0], strides[2]))
