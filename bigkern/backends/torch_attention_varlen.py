"""attention_varlen in PyTorch's operators: a loop over the sequences, for the torch backend and second derivatives."""

import torch

from .torch_attention import acc_dtype, attention_backward_torch, attention_forward_torch


def attention_varlen_forward_torch(
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
    """(output, lse); the same function as the kernels'."""
    outputs, rows = [], []
    for s, queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k, query, key):
        slopes = None if alibi_slopes is None else alibi_slopes[s : s + 1]
        one = (_heads_first(query[queries]), _heads_first(key[keys]), _heads_first(value[keys]))
        options = (None, None, 0.0, is_causal, scale, slopes, window_left, window_right)
        output, lse = attention_forward_torch(*one, *options)
        outputs.append(output[0].transpose(0, 1))
        rows.append(lse[0])
    rest = len(query) - sum(map(len, outputs))
    heads = query.shape[1]
    outputs.append(query.new_zeros(rest, heads, value.shape[2]))
    rows.append(query.new_full((heads, rest), float("-inf"), dtype=acc_dtype(query.dtype)))
    return torch.cat(outputs), torch.cat(rows, 1)


def attention_varlen_backward_torch(
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
    """(grad_query, grad_key, grad_value), differentiable in every floating argument."""
    grads = [[], [], []]
    for s, queries, keys in _sequences(cu_seqlens_q, cu_seqlens_k, query, key):
        slopes = None if alibi_slopes is None else alibi_slopes[s : s + 1]
        incoming = (_heads_first(grad_output[queries]), None if grad_lse is None else grad_lse[None, :, queries])
        one = (_heads_first(query[queries]), _heads_first(key[keys]), _heads_first(value[keys]))
        saved = (None, _heads_first(output[queries]), lse[None, :, queries], None)
        options = (0.0, is_causal, scale, slopes, window_left, window_right, False)
        one_grads = attention_backward_torch(*incoming, *one, *saved, *options)
        for parts, grad in zip(grads, one_grads, strict=False):
            parts.append(grad[0].transpose(0, 1))
    for parts, tensor in zip(grads, (query, key, value), strict=True):
        parts.append(torch.zeros_like(tensor[sum(map(len, parts)) :]))
    return tuple(torch.cat(parts) for parts in grads)


def _sequences(cu_seqlens_q, cu_seqlens_k, query, key):
    """(number, its rows of query, its rows of key and value) of each sequence"""
    starts = []
    for name, cu_seqlens, packed in (("q", cu_seqlens_q, query), ("k", cu_seqlens_k, key)):
        starts.append(cu_seqlens.tolist())
        if starts[-1][0] != 0 or sorted(starts[-1]) != starts[-1] or starts[-1][-1] > len(packed):
            raise ValueError(f"attention_varlen: cu_seqlens_{name} must rise from 0 to at most {len(packed)}")
    for s in range(len(starts[0]) - 1):
        yield s, slice(*starts[0][s : s + 2]), slice(*starts[1][s : s + 2])


def _heads_first(packed):
    """[length, heads, dim] as [1, heads, length, dim]"""
    return packed.transpose(0, 1)[None]
