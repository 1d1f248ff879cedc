"""Attention over a cache of keys and values, one sequence and head at a time. Caches are [batch, kv_heads, max_len,
dim], or pages [num_blocks, kv_heads, block_size, dim] that block_table [batch, max_blocks] puts in order."""

import numpy as np

from .array_module import array_module, largest


def attention_decode_forward(
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
    """(output [batch, heads, len_q, value_dim], lse [batch, heads, len_q])"""
    xp = array_module(query)
    batch, heads, len_q, _ = query.shape
    output = xp.zeros((batch, heads, len_q, value_cache.shape[3]))
    lse = xp.full((batch, heads, len_q), -np.inf)
    for b in range(batch):
        seqlen = int(cache_seqlens[b])
        pages, slots = places_of_tokens(0, seqlen, b, block_table, key_cache)
        for h in range(heads):
            kv_h = h // (heads // key_cache.shape[1])
            key = _dequantized(key_cache, key_scale, pages, kv_h, slots)
            value = _dequantized(value_cache, value_scale, pages, kv_h, slots)
            for i in range(len_q):
                position = seqlen - len_q + i
                distance = position - xp.arange(seqlen)  # positive where the key comes first
                scores = key @ query[b, h, i] * scale
                if alibi_slopes is not None:
                    scores = scores - alibi_slopes[b, h] * abs(distance)
                visible = xp.full(seqlen, True)
                if window_left >= 0:
                    visible &= distance <= window_left
                if window_right >= 0:
                    visible &= distance >= -window_right
                if not visible.any():
                    continue
                scores = scores[visible]
                weights = xp.exp(scores - scores.max())
                output[b, h, i] = weights @ value[visible] / weights.sum()
                lse[b, h, i] = xp.log(weights.sum()) + scores.max()
    return output, lse


def cache_append_step(caches, scales, key, value, cache_seqlens, block_table):
    """Writes key and value [batch, kv_heads, len_new, dim] behind the first cache_seqlens tokens of each sequence."""
    xp = array_module(key)
    for which, new in enumerate((key, value)):
        cache = caches[which]
        for b in range(new.shape[0]):
            pages, slots = places_of_tokens(int(cache_seqlens[b]), new.shape[2], b, block_table, cache)
            for h in range(new.shape[1]):
                if scales:
                    scale = _scale_of(new[b, h])
                    scales[which][pages, h, slots] = scale
                    with np.errstate(invalid="ignore"):
                        quotient = xp.rint(new[b, h] / scale[:, None])
                    cache[pages, h, slots] = xp.nan_to_num(xp.clip(quotient, -127, 127)).astype(np.int8)
                else:
                    cache[pages, h, slots] = new[b, h]


def places_of_tokens(first, count, b, block_table, cache):
    """(indices into dimension 0 of the cache, into dimension 2) of `count` tokens of sequence b from `first` on"""
    xp = array_module(cache)
    block_size = cache.shape[2]
    capacity = block_size * (1 if block_table is None else block_table.shape[1])
    if first < 0 or count < 0 or first + count > capacity:
        raise ValueError(f"attention_decode: sequence {b} needs {first + count} tokens, its cache holds {capacity}")
    tokens = xp.arange(first, first + count)
    if block_table is None:
        return xp.full(count, b), tokens
    pages = block_table[b, tokens // block_size]
    if count and (pages.min() < 0 or pages.max() >= cache.shape[0]):
        raise ValueError(f"attention_decode: block_table of sequence {b} names a page that the cache does not have")
    return pages, tokens % block_size


def _dequantized(cache, scale, pages, h, slots):
    tokens = cache[pages, h, slots].astype(np.float64)
    return tokens if scale is None else tokens * scale[pages, h, slots][:, None]


def _scale_of(rows):
    """One scale per row: max|x| / 127 in float32, 1 for a row of zeros, NaN for one that holds NaN or infinity"""
    xp = array_module(rows)
    row_max = largest(xp.abs(rows), -1, 0)
    # float32's smallest normal number is the least that a scale may be
    scale = xp.where(row_max > 0, xp.maximum(row_max / 127, np.finfo(np.float32).tiny), 1).astype(np.float32)
    return xp.where(xp.isfinite(row_max), scale, np.float32(np.nan))
