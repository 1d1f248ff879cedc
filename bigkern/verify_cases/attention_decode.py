"""Cases of attention_decode."""

import torch
import torch.nn.functional as F

import bigkern

from .case import ALL_DTYPES, Case

SEQLENS = (37, 1, 20)
MAX_LEN = 40


def _inputs(len_q, block_size, is_int8):
    blocks = (len(SEQLENS), MAX_LEN) if block_size is None else (len(SEQLENS) * MAX_LEN // block_size, block_size)
    shape = (blocks[0], 2, blocks[1], 24)
    drawn = {"query": torch.randn(len(SEQLENS), 6, len_q, 24), "key_cache": torch.randn(shape)}
    drawn |= {"value_cache": torch.randn(shape), "cache_seqlens": torch.tensor(SEQLENS, dtype=torch.int32)}
    if block_size is not None:
        drawn["block_table"] = torch.randperm(blocks[0]).view(len(SEQLENS), -1).int()
    if is_int8:
        for name in ("key", "value"):
            drawn[f"{name}_cache"] = torch.randint(-127, 128, shape, dtype=torch.int8)
            # As bits: a scale is float32 whatever dtype is under test.
            drawn[f"{name}_scale"] = (torch.rand(shape[:3]) / 50 + 0.01).view(torch.int32)
    return drawn


def _with_scales(tensors):
    return {name: tensor.view(torch.float32) if "_scale" in name else tensor for name, tensor in tensors.items()}


def _ours(**tensors):
    return bigkern.attention_decode(**_with_scales(tensors))


def _theirs(**tensors):
    """The cache put in order and dequantized, under a dense mask."""
    tensors = _with_scales(tensors)
    query, caches = tensors["query"], []
    for name in ("key", "value"):
        cache = tensors[f"{name}_cache"]
        if cache.dtype == torch.int8:
            cache = (cache * tensors[f"{name}_scale"][..., None]).to(query.dtype)
        table = tensors.get("block_table")
        caches.append(cache if table is None else cache[table.long()].transpose(1, 2).flatten(2, 3))
    len_q = query.shape[2]
    last_key = tensors["cache_seqlens"][:, None] - len_q + torch.arange(len_q, device=query.device)
    visible = torch.arange(MAX_LEN, device=query.device) <= last_key[:, None, :, None]
    return F.scaled_dot_product_attention(query, *caches, visible, enable_gqa=True)


def _decode(name, len_q=1, block_size=None, is_int8=False):
    # The C++ kernel leaves int8 caches under float64 queries to PyTorch.
    dtypes = ALL_DTYPES[:3] if is_int8 else ALL_DTYPES
    return Case("attention_decode", name, lambda: _inputs(len_q, block_size, is_int8), _ours, _theirs, (), dtypes)


def _append(name):
    """Copies are exact: all is as PyTorch's own assignment leaves it."""
    seqlens = (4, 7)

    def new_caches(key, value):
        return [torch.zeros(2, 3, 9, new.shape[3], dtype=new.dtype, device=new.device) for new in (key, value)]

    def ours(key, value):
        caches = new_caches(key, value)
        bigkern.cache_append(key, value, *caches, torch.tensor(seqlens, dtype=torch.int32, device=key.device))
        return dict(zip(("key_cache", "value_cache"), caches, strict=True))

    def theirs(key, value):
        caches = new_caches(key, value)
        for cache, new in zip(caches, (key, value), strict=True):
            for b, first in enumerate(seqlens):
                cache[b, :, first : first + new.shape[2]] = new[b]
        return dict(zip(("key_cache", "value_cache"), caches, strict=True))

    def inputs():
        return {"key": torch.randn(2, 3, 2, 24), "value": torch.randn(2, 3, 2, 17)}

    return Case("attention_decode", name, inputs, ours, theirs)


ATTENTION_DECODE = [
    _decode("one query"),
    _decode("three queries", len_q=3),
    _decode("pages of 8", block_size=8),
    _decode("int8", is_int8=True),
    _decode("int8, pages of 5, two queries", len_q=2, block_size=5, is_int8=True),
    _append("append"),
]
