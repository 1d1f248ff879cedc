"""attention_decode against PyTorch's attention over the filled part of the cache, under a mask where lengths differ."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("attention_decode",)


def _case(
    name, batch, heads, kv_heads, length, dtype=torch.float32, head_dim=64, len_q=1, block_size=None, is_int8=False
):
    """A cache for twice `length`; every second sequence is half as long."""
    capacity = 2 * length

    def inputs(device):
        shape = (batch, kv_heads, capacity, head_dim)
        if block_size:
            shape = (batch * capacity // block_size, kv_heads, block_size, head_dim)
        tensors = {"query": torch.randn(batch, heads, len_q, head_dim, device=device).to(dtype)}
        for kind in ("key", "value"):
            cache = torch.randn(shape, device=device)
            if is_int8:
                tensors[f"{kind}_cache"], tensors[f"{kind}_scale"], _ = bigkern.quantize(cache, group_size=head_dim)
                tensors[f"{kind}_scale"] = tensors[f"{kind}_scale"].squeeze(-1)
            else:
                tensors[f"{kind}_cache"] = cache.to(dtype)
        lengths = [length if b % 2 == 0 else length // 2 for b in range(batch)]
        tensors["cache_seqlens"] = torch.tensor(lengths, dtype=torch.int32, device=device)
        if block_size:
            tensors["block_table"] = torch.randperm(shape[0], device=device).view(batch, -1).int()
        return tensors

    def filled(cache, scale, block_table, query):
        if block_table is not None:
            block_table = block_table[:, : -(-length // block_size)]
            cache = cache[block_table].transpose(1, 2).flatten(2, 3)
            scale = None if scale is None else scale[block_table].transpose(1, 2).flatten(2, 3)
        cache = cache[:, :, :length]
        return cache if scale is None else (cache * scale[:, :, :length, None]).to(query.dtype)

    def eager(query, key_cache, value_cache, cache_seqlens, block_table=None, key_scale=None, value_scale=None):
        key = filled(key_cache, key_scale, block_table, query)
        value = filled(value_cache, value_scale, block_table, query)
        last = cache_seqlens[:, None] - len_q + torch.arange(len_q, device=query.device)
        visible = torch.arange(length, device=query.device) <= last[:, None, :, None]
        return F.scaled_dot_product_attention(query, key, value, visible, enable_gqa=heads != kv_heads)

    tokens = batch * kv_heads * length * 3 // 4
    itemsize = 1 if is_int8 else dtype.itemsize
    return Case(
        f"{name} {str(dtype).removeprefix('torch.')}",
        inputs,
        bigkern.attention_decode,
        eager,
        flops=4 * tokens * heads // kv_heads * len_q * head_dim,
        bytes=2 * tokens * (head_dim * itemsize + (4 if is_int8 else 0)),
        peak=str(dtype).removeprefix("torch."),
        gradients=(),
    )


CASES = [
    _case("4x32/8, 1024 keys", 4, 32, 8, 1024),
    _case("1x8/8, 8192 keys", 1, 8, 8, 8192),
    _case("4x32/8, 1024 keys, 4 queries", 4, 32, 8, 1024, len_q=4),
    _case("4x32/8, 1024 keys, pages of 16", 4, 32, 8, 1024, block_size=16),
    _case("4x32/8, 1024 keys, int8", 4, 32, 8, 1024, is_int8=True),
    _case("4x32/8, 1024 keys", 4, 32, 8, 1024, dtype=torch.bfloat16),
]
_HALF = {"dtype": torch.bfloat16, "head_dim": 128}
GPU_CASES = [
    _case("32x32/8, 8192 keys", 32, 32, 8, 8192, **_HALF),
    _case("1x32/8, 65536 keys", 1, 32, 8, 65536, **_HALF),
    _case("32x32/8, 8192 keys, 4 queries", 32, 32, 8, 8192, len_q=4, **_HALF),
    _case("32x32/8, 8192 keys, pages of 16", 32, 32, 8, 8192, block_size=16, **_HALF),
    _case("32x32/8, 8192 keys, int8", 32, 32, 8, 8192, is_int8=True, **_HALF),
]
TINY_CASES = [_case("2x4/2, 20 keys, pages of 4", 2, 4, 2, 20, dtype=torch.float16, head_dim=16, block_size=4)]
