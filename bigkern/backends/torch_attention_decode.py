"""attention_decode in PyTorch's operators: the torch backend."""

import torch

from .torch_attention import acc_dtype


def attention_decode_forward_torch(
    query,
    key_cache,
    value_cache,
    cache_seqlens,
    block_table,
    key_scale,
    value_scale,
    alibi_slopes,
    scale,
    window_left,
    window_right,
):
    """(output, lse); the same function as the kernels'."""
    acc, (batch, heads, len_q, _) = acc_dtype(query.dtype), query.shape
    key = _in_order(key_cache, key_scale, block_table, acc)
    value = _in_order(value_cache, value_scale, block_table, acc)
    capacity = key.shape[2]
    _check_lengths(cache_seqlens, 0, capacity)

    index = torch.arange(capacity, device=query.device)
    seqlens = cache_seqlens.long()[:, None, None]  # [batch, 1, 1]
    position = seqlens - len_q + torch.arange(len_q, device=query.device)[:, None]
    distance = position - index  # [batch, len_q, capacity], positive where the key comes first
    exists = index < seqlens  # [batch, 1, capacity]
    visible = exists
    if window_left >= 0:
        visible = visible & (distance <= window_left)
    if window_right >= 0:
        visible = visible & (distance >= -window_right)
    # Memory behind the last token may hold anything, and 0 * NaN is NaN.
    key, value = (tensor.masked_fill(~exists[..., None], 0) for tensor in (key, value))
    group = heads // max(key.shape[1], 1)
    key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    scores = query.to(acc) @ key.mT * scale
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[..., None, None] * distance.abs()[:, None]
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    lse = torch.logsumexp(scores, -1) if capacity else scores.new_full((batch, heads, len_q), float("-inf"))
    probs = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0)[..., None])
    return (probs @ value).to(query.dtype), lse


def cache_append_torch(caches, scales, key, value, cache_seqlens, block_table):
    batch, len_new = key.shape[0], key.shape[2]
    block_size = caches[0].shape[2]
    _check_lengths(cache_seqlens, len_new, block_size * (1 if block_table is None else block_table.shape[1]))
    sequences = torch.arange(batch, device=key.device)[:, None]
    tokens = cache_seqlens.long()[:, None] + torch.arange(len_new, device=key.device)  # [batch, len_new]
    pages = sequences.expand_as(tokens) if block_table is None else block_table.long()[sequences, tokens // block_size]
    slots = tokens % block_size
    for i, new in enumerate((key, value)):
        new = new.transpose(1, 2)  # [batch, len_new, kv_heads, dim], as advanced indexing puts it
        if scales:
            wide = new.to(acc_dtype(new.dtype))
            largest = wide.abs().amax(-1) if new.shape[3] else wide.new_zeros(new.shape[:3])
            scale = (largest / 127).float().clamp(min=torch.finfo(torch.float32).tiny)
            scale = scale.masked_fill(largest == 0, 1).masked_fill(~largest.isfinite(), float("nan"))
            scales[i].transpose(1, 2)[pages, slots] = scale
            new = (wide / scale[..., None]).round().clamp(-127, 127).nan_to_num()
        caches[i].transpose(1, 2)[pages, slots] = new.to(caches[i].dtype)


def _in_order(cache, scale, block_table, acc):
    """The cache as [batch, kv_heads, capacity, dim], dequantized"""
    cache = cache.to(acc) if scale is None else cache.to(acc) * scale[..., None]
    if block_table is None:
        return cache
    pages = cache[block_table.long()]  # [batch, max_blocks, kv_heads, block_size, dim]
    return pages.transpose(1, 2).flatten(2, 3)


def _check_lengths(cache_seqlens, len_new, capacity):
    if cache_seqlens.is_cuda or not cache_seqlens.numel():  # on a GPU looking would wait for it
        return
    if cache_seqlens.min() < 0 or cache_seqlens.max() + len_new > capacity:
        raise ValueError(f"attention_decode: cache_seqlens {cache_seqlens.tolist()} + {len_new} exceed {capacity}")
