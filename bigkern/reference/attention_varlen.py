"""Attention over sequences that lie one after the other: query [total_q, heads, head_dim], key and value [total_k,
kv_heads, dim]; sequence s owns rows cu_seqlens[s] to cu_seqlens[s + 1]. Each is an attention of its own."""

import numpy as np

from . import attention
from .array_module import array_module


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
):
    """(output [total_q, heads, value_dim], lse [heads, total_q]); zeros and -inf for rows of no sequence"""
    xp = array_module(query)
    output = xp.zeros((*query.shape[:2], value.shape[2]))
    lse = xp.full((query.shape[1], query.shape[0]), -np.inf)
    for s, queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k):
        heads_first = (_heads_first(query[queries]), _heads_first(key[keys]), _heads_first(value[keys]))
        slopes = None if alibi_slopes is None else alibi_slopes[s : s + 1]
        options = (None, None, 0.0, is_causal, scale, slopes, window_left, window_right)
        one_output, one_lse = attention.attention_forward(*heads_first, *options)
        output[queries], lse[:, queries] = one_output[0].swapaxes(0, 1), one_lse[0]
    return output, lse


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
):
    """(grad_query, grad_key, grad_value); zeros for rows of no sequence"""
    xp = array_module(grad_output)
    grads = [xp.zeros(tensor.shape) for tensor in (query, key, value)]
    for s, queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k):
        one_grad_lse = None if grad_lse is None else grad_lse[None, :, queries]
        heads_first = (_heads_first(query[queries]), _heads_first(key[keys]), _heads_first(value[keys]))
        saved = (_heads_first(output[queries]), lse[None, :, queries])
        slopes = None if alibi_slopes is None else alibi_slopes[s : s + 1]
        options = (None, 0.0, is_causal, scale, slopes, window_left, window_right, False)
        one_grads = attention.attention_backward(
            _heads_first(grad_output[queries]), one_grad_lse, *heads_first, None, *saved, *options
        )
        for grad, rows, one_grad in zip(grads, (queries, keys, keys), one_grads, strict=False):
            grad[rows] = one_grad[0].swapaxes(0, 1)
    return tuple(grads)


def _sequences(cu_seqlens_q, cu_seqlens_k):
    """(number, its rows of query, its rows of key and value) of each sequence"""
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for s in range(len(ends_q) - 1):
        yield s, slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])


def _heads_first(packed):
    """[length, heads, dim] as [1, heads, length, dim]"""
    return packed.swapaxes(0, 1)[None]
