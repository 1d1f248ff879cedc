"""attention_decode: attention of the newest queries of each sequence over its cache of keys and values.

    position[i]  = cache_seqlens - len_q + i                  (the queries are the sequence's last tokens)
    scores[i, j] = scale * key_scale[j] * dot(query[i], key[j]) - alibi_slope * |position[i] - j|
    output[i]    = sum_j softmax(scores[i])[j] * value_scale[j] * value[j]

Keys and values are read once, where they lie. The work is split along the keys, and the parts are merged by their
log-sum-exp in a fixed order. Sources: "Flash-Decoding" (Dao et al., 2023); the paged cache: Kwon et al., "Efficient
Memory Management for Large Language Model Serving with PagedAttention" (2023). No gradient passes through it.
"""

import math

import torch

from ..backends.torch_attention_decode import attention_decode_forward_torch, cache_append_torch
from ..registration import Kernel
from .attention import FLOATING, MAX_HEAD_DIM_GPU, NO_WINDOW, checked_slopes, checked_window, lse_dtype


def attention_decode(
    query,
    key_cache,
    value_cache,
    cache_seqlens,
    *,
    block_table=None,
    key_scale=None,
    value_scale=None,
    scale=None,
    is_causal=True,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> torch.Tensor:
    """Attention of a few new tokens per sequence over a cache of keys and values.

    Args:
        query: floating [batch, heads, len_q, head_dim]: the last len_q tokens of each sequence (1, or a few that were
            guessed ahead).
        key_cache: [batch, kv_heads, max_len, head_dim] of query's dtype, or int8. With block_table: pages,
            [num_blocks, kv_heads, block_size, head_dim]. Each kv head serves heads / kv_heads neighbouring ones of
            query.
        value_cache: the same with value_dim in the place of head_dim.
        cache_seqlens: int32 [batch]: how many tokens each sequence has in the cache, the queries' own among them
            (`cache_append` comes first). What lies beyond is never read.
        block_table: int32 [batch, max_blocks]: token j of sequence b lies in page block_table[b, j // block_size].
        key_scale, value_scale: float32, shaped as the caches without their last dimension: what each token and head of
            an int8 cache is multiplied by. They go with int8 caches, and only with these.
        scale: the factor of the scores; None: 1 / sqrt(head_dim).
        is_causal: a query sees no token after its own (bottom right alignment). False: all of cache_seqlens.
        window_size: (left, right) around a query's own position; -1 sets no bound. See `attention`.
        alibi_slopes: float32 (float64 for float64 query) [heads] or [batch, heads]; see `attention`.

    Returns:
        [batch, heads, len_q, value_dim] in query's dtype. A query that sees no key gives zeros. On a GPU, where lengths
        cannot be looked at without waiting for them, a sequence whose length or page does not exist gives NaN.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: shapes that do not fit, several devices, a tensor that wants a gradient; on a CPU, a length or a
            page that does not exist.
    """
    return attention_decode_with_lse(
        query,
        key_cache,
        value_cache,
        cache_seqlens,
        block_table=block_table,
        key_scale=key_scale,
        value_scale=value_scale,
        scale=scale,
        is_causal=is_causal,
        window_size=window_size,
        alibi_slopes=alibi_slopes,
    )[0]


def attention_decode_with_lse(
    query,
    key_cache,
    value_cache,
    cache_seqlens,
    *,
    block_table=None,
    key_scale=None,
    value_scale=None,
    scale=None,
    is_causal=True,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_decode`, and the natural logarithm of each row's sum of exponentials.

    Arguments and errors are those of `attention_decode`.

    Returns:
        (output [batch, heads, len_q, value_dim], lse [batch, heads, len_q]); lse is float32 (float64 for float64
        query), and -inf where a query sees no key.
    """
    op = "attention_decode"
    if query.dtype not in FLOATING:
        raise TypeError(f"{op}: query must be floating, got {query.dtype}")
    if query.ndim != 4:
        raise ValueError(f"{op}: query must be [batch, heads, len_q, head_dim], got {tuple(query.shape)}")
    _check_cache(op, query, key_cache, value_cache, cache_seqlens, block_table, key_scale, value_scale)
    if query.shape[3] != key_cache.shape[3]:
        raise ValueError(f"{op}: query has head_dim {query.shape[3]}, key_cache has {key_cache.shape[3]}")
    heads, kv_heads = query.shape[1], key_cache.shape[1]
    if heads % kv_heads if kv_heads else heads:
        raise ValueError(f"{op}: {heads} heads of query are no multiple of {kv_heads} heads of the caches")
    is_causal, left, right = checked_window(op, window_size, is_causal)
    if alibi_slopes is not None:
        alibi_slopes = checked_slopes(op, alibi_slopes, query)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[3]) if query.shape[3] else 1.0
    inputs = (query, key_cache, value_cache, cache_seqlens, block_table, key_scale, value_scale, alibi_slopes)
    return attention_decode_forward(*inputs, float(scale), left, 0 if is_causal else right)


def cache_append(
    key, value, key_cache, value_cache, cache_seqlens, *, block_table=None, key_scale=None, value_scale=None
) -> None:
    """Writes new tokens behind those in the cache, in place: the other half of `attention_decode`.

    Args:
        key: floating [batch, kv_heads, len_new, head_dim].
        value: [batch, kv_heads, len_new, value_dim], of key's dtype.
        key_cache, value_cache, block_table, key_scale, value_scale: as `attention_decode` takes them. An int8 cache is
            quantized as by `quantize(..., group_size=head_dim)`: scale = max|x| / 127.
        cache_seqlens: int32 [batch]: how many tokens each sequence has already; the new ones follow. The caller adds
            len_new to it afterwards.

    Raises:
        TypeError, ValueError: as `attention_decode`. On a GPU a token that has no place is not written.
    """
    op = "cache_append"
    if key.dtype not in FLOATING:
        raise TypeError(f"{op}: key must be floating, got {key.dtype}")
    if key.dtype != value.dtype:
        raise TypeError(f"{op}: key and value must have the same dtype, got {key.dtype} and {value.dtype}")
    _check_cache(op, key, key_cache, value_cache, cache_seqlens, block_table, key_scale, value_scale)
    for name, tensor, cache in (("key", key, key_cache), ("value", value, value_cache)):
        wanted = (key.shape[0], cache.shape[1], key.shape[2] if key.ndim == 4 else 1, cache.shape[3])
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{op}: {name} must be {list(wanted)}, got {list(tensor.shape)}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} wants a gradient, and there is none; detach it, or use torch.no_grad()")
    if value.device != key.device:
        raise ValueError(f"{op}: value is on {value.device}, key on {key.device}")
    scales = [] if key_scale is None else [key_scale, value_scale]
    cache_append_step([key_cache, value_cache], scales, key, value, cache_seqlens, block_table)


def _check_cache(op, query, key_cache, value_cache, cache_seqlens, block_table, key_scale, value_scale):
    name = "query" if op == "attention_decode" else "key"
    tensors = {"key_cache": key_cache, "value_cache": value_cache, "cache_seqlens": cache_seqlens}
    tensors |= {"block_table": block_table, "key_scale": key_scale, "value_scale": value_scale}
    for other, tensor in ((name, query), *tensors.items()):
        if tensor is None:
            continue
        if tensor.device != query.device:
            raise ValueError(f"{op}: {other} is on {tensor.device}, {name} on {query.device}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {other} wants a gradient, and there is none; detach it, or use torch.no_grad()")
    if key_cache.dtype != value_cache.dtype or key_cache.dtype not in (query.dtype, torch.int8):
        raise TypeError(
            f"{op}: key_cache and value_cache must both be {query.dtype} or torch.int8, got {key_cache.dtype} and "
            f"{value_cache.dtype}"
        )
    if key_cache.ndim != 4 or value_cache.ndim != 4 or key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(
            f"{op}: key_cache and value_cache must be 4-D with the same first three sizes, got "
            f"{tuple(key_cache.shape)} and {tuple(value_cache.shape)}"
        )
    batch = query.shape[0]
    if cache_seqlens.dtype != torch.int32 or tuple(cache_seqlens.shape) != (batch,):
        raise ValueError(
            f"{op}: cache_seqlens must be torch.int32 [{batch}], got {cache_seqlens.dtype} {list(cache_seqlens.shape)}"
        )
    if block_table is None:
        if key_cache.shape[0] != batch:
            raise ValueError(f"{op}: key_cache has {key_cache.shape[0]} sequences, {name} has {batch}")
    elif block_table.dtype != torch.int32 or block_table.ndim != 2 or block_table.shape[0] != batch:
        raise ValueError(
            f"{op}: block_table must be torch.int32 [{batch}, max_blocks], got {block_table.dtype} "
            f"{list(block_table.shape)}"
        )
    is_int8 = key_cache.dtype == torch.int8
    for other, tensor in (("key_scale", key_scale), ("value_scale", value_scale)):
        if is_int8 != (tensor is not None):
            raise ValueError(f"{op}: {other} goes with int8 caches, and only with these")
        if is_int8 and (tensor.dtype != torch.float32 or tensor.shape != key_cache.shape[:3]):
            raise ValueError(
                f"{op}: {other} must be torch.float32 {list(key_cache.shape[:3])}, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )


# ---- attention_decode_forward ----------------------------------------------------------------------------------------


def _allocate_forward(query, key_cache, value_cache, *rest):
    return (
        query.new_empty(*query.shape[:3], value_cache.shape[3]),
        query.new_empty(*query.shape[:3], dtype=lse_dtype(query.dtype)),
    )


def _cpu_supports_forward(query, key_cache, value_cache, *rest):
    if query.dtype == torch.float64 and key_cache.dtype == torch.int8:
        return "int8 caches under float64 queries are left to PyTorch"
    if any(cache.stride(3) != 1 and cache.shape[3] > 1 for cache in (key_cache, value_cache)):
        return "the last dimension of a cache is not contiguous"
    return None


def _triton_supports_forward(query, key_cache, value_cache, *rest):
    if query.dtype == torch.float64:
        return "float64 is left to PyTorch on a GPU"
    widest, narrowest = max(query.shape[3], value_cache.shape[3]), min(query.shape[3], value_cache.shape[3])
    if widest > MAX_HEAD_DIM_GPU:
        return f"head_dim {widest} is above {MAX_HEAD_DIM_GPU}"
    return "head_dim 0 is left to PyTorch" if narrowest == 0 else None


attention_decode_forward = Kernel(
    "attention_decode_forward(Tensor query, Tensor key_cache, Tensor value_cache, Tensor cache_seqlens, "
    "Tensor? block_table, Tensor? key_scale, Tensor? value_scale, Tensor? alibi_slopes, float scale, int window_left, "
    "int window_right) -> (Tensor output, Tensor lse)",
    module="attention_decode",
    allocate=_allocate_forward,
    torch=attention_decode_forward_torch,
    supports={"cpu": _cpu_supports_forward, "triton": _triton_supports_forward},
)


# ---- cache_append_step -----------------------------------------------------------------------------------------------


def _triton_supports_append(caches, scales, key, *rest):
    return "float64 is left to PyTorch on a GPU" if key.dtype == torch.float64 else None


cache_append_step = Kernel(
    "cache_append_step(Tensor(a!)[] caches, Tensor(b!)[] scales, Tensor key, Tensor value, Tensor cache_seqlens, "
    "Tensor? block_table) -> ()",
    module="attention_decode",
    torch=cache_append_torch,
    supports={"cpu": None, "triton": _triton_supports_append},
)
