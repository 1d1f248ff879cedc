"""Attention over a cache of keys and values on GPUs: split along the keys, merged in a fixed order ("Flash-Decoding",
Dao et al., 2023); the door to the writing of new tokens."""

import torch
import triton
import triton.language as tl

from .attention_common import LN2, LOG2E, alibi_strides, dot, exp_score, padded_dim, tile_offsets, units_per_nat
from .attention_decode_append import cache_append_step
from .common import COMPILE_OPTIONS, INTERPRET, num_multiprocessors, on_device_of

__all__ = ["attention_decode_forward", "cache_append_step"]

MAX_ROWS = 64


def tile_for(rows, head_dim, value_dim, dtype, is_int8):
    """(rows, keys) of a tile, num_warps: 16 rows are the least that tl.dot takes. A first guess, not yet timed."""
    if INTERPRET:
        return 16, 16, 1
    block_rows = min(max(16, triton.next_power_of_2(rows)), MAX_ROWS)
    wide = max(padded_dim(head_dim), padded_dim(value_dim)) > 128 or dtype == torch.float32 or is_int8
    return block_rows, 32 if wide else 64, 4


def part_keys_for(programs, capacity, block_k, device):
    """Keys of one part, a multiple of block_k: so many that the parts fill the chip twice, but no fewer than 256."""
    if INTERPRET:
        return 2 * block_k
    parts = min(max(1, 2 * num_multiprocessors(device) // max(programs, 1)), triton.cdiv(capacity, 256))
    return triton.cdiv(triton.cdiv(capacity, parts), block_k) * block_k


@triton.jit
def operand(tile, dtype: tl.constexpr, UPCAST_DOT: tl.constexpr):
    """A tile of the cache as an operand of `dot`; int8 fits bf16 exactly, but triton's interpreter cannot say so."""
    return tile.to(tl.float32) if UPCAST_DOT else tile.to(dtype)


@triton.jit
def attention_decode_part_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    seqlens_ptr,
    table_ptr,
    key_scale_ptr,
    value_scale_ptr,
    alibi_ptr,
    part_output_ptr,
    part_lse_ptr,
    query_stride_batch,
    query_stride_head,
    query_stride_len,
    query_stride_dim,
    key_stride_block,
    key_stride_head,
    key_stride_len,
    key_stride_dim,
    value_stride_block,
    value_stride_head,
    value_stride_len,
    value_stride_dim,
    key_scale_stride_block,
    key_scale_stride_head,
    key_scale_stride_len,
    value_scale_stride_block,
    value_scale_stride_head,
    value_scale_stride_len,
    alibi_stride_batch,
    alibi_stride_head,
    table_stride_batch,
    table_stride_block,
    kv_heads,
    group_size,
    len_q,
    block_size,
    num_blocks,
    capacity,
    num_parts,
    part_keys,
    window_left,
    window_right,
    score_scale,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PAGED: tl.constexpr,
    IS_INT8: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    IN_NATS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    """All queries of one kv head against one part of its keys: the part's own output, and its log-sum-exp."""
    part = tl.program_id(0) % num_parts
    batch_kv_head = tl.program_id(0) // num_parts
    batch = (batch_kv_head // kv_heads).to(tl.int64)
    kv_head = (batch_kv_head % kv_heads).to(tl.int64)
    num_rows = group_size * len_q
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    heads = kv_head * group_size + rows // len_q
    inside = rows < num_rows
    dims = tl.arange(0, BLOCK_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE)

    # a length that the cache cannot have is answered with NaN by the kernel that merges
    seqlen = tl.minimum(tl.maximum(tl.load(seqlens_ptr + batch), 0), capacity)
    positions = seqlen - len_q + rows % len_q
    first_position = seqlen - len_q

    query_ptrs = query_ptr + batch * query_stride_batch + tile_offsets(heads, dims, query_stride_head, query_stride_dim)
    query_ptrs += (rows % len_q).to(tl.int64)[:, None] * query_stride_len
    query = tl.load(query_ptrs, mask=inside[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    if HAS_ALIBI:
        slopes = tl.load(alibi_ptr + batch * alibi_stride_batch + heads * alibi_stride_head, mask=inside, other=0.0)
        if not IN_NATS:
            slopes *= LOG2E

    row_max = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)

    part_start = part * part_keys
    # whole tiles that no query's window reaches are skipped
    start = tl.maximum(part_start, tl.maximum(first_position - window_left, 0) // BLOCK_K * BLOCK_K)
    end = tl.minimum(part_start + part_keys, tl.minimum(seqlen, seqlen + window_right))
    for start_k in range(start, end, BLOCK_K):
        keys = start_k + tl.arange(0, BLOCK_K)
        exists = keys < seqlen
        page = tl.full([BLOCK_K], 0, tl.int64) + batch
        slot = keys
        if PAGED:
            table_ptrs = table_ptr + batch * table_stride_batch + (keys // block_size) * table_stride_block
            page = tl.load(table_ptrs, mask=exists, other=0).to(tl.int64)
            slot = keys % block_size
        is_page = (page >= 0) & (page < num_blocks)
        readable = exists & is_page

        key_ptrs = key_ptr + kv_head * key_stride_head + tile_offsets(slot, dims, key_stride_len, key_stride_dim)
        key_ptrs += page[:, None] * key_stride_block
        key = tl.load(key_ptrs, mask=readable[:, None] & (dims < HEAD_DIM)[None, :], other=0)
        scores = (
            dot(query, tl.trans(operand(key, query.dtype, UPCAST_DOT)), None, UPCAST_DOT) * score_scale
        )  # [BLOCK_ROWS, BLOCK_K]
        if IS_INT8:
            scale_ptrs = key_scale_ptr + page * key_scale_stride_block + kv_head * key_scale_stride_head
            scores *= tl.load(scale_ptrs + slot * key_scale_stride_len, mask=readable, other=0.0)[None, :]
        distance = positions[:, None] - keys[None, :]
        if HAS_ALIBI:
            scores -= slopes[:, None] * tl.abs(distance).to(tl.float32)
        scores = tl.where(is_page[None, :], scores, float("nan"))
        visible = exists[None, :] & (distance <= window_left) & (distance >= -window_right)
        scores = tl.where(visible, scores, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(scores, 1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf is NaN
        probs = exp_score(scores - shift[:, None], IN_NATS)
        rescale = exp_score(row_max - shift, IN_NATS)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        row_max = new_max
        if IS_INT8:
            scale_ptrs = value_scale_ptr + page * value_scale_stride_block + kv_head * value_scale_stride_head
            probs *= tl.load(scale_ptrs + slot * value_scale_stride_len, mask=readable, other=0.0)[None, :]
        value_ptrs = value_ptr + kv_head * value_stride_head
        value_ptrs += tile_offsets(slot, value_dims, value_stride_len, value_stride_dim)
        value_ptrs += page[:, None] * value_stride_block
        value = tl.load(value_ptrs, mask=readable[:, None] & (value_dims < VALUE_DIM)[None, :], other=0)
        acc = dot(probs.to(query.dtype), operand(value, query.dtype, UPCAST_DOT), acc * rescale[:, None], UPCAST_DOT)

    # a part that no query sees has sum 0: dividing by 1 leaves its output 0 and its lse -inf
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    lse = row_max + tl.log2(row_sum) * LN2 if IN_NATS else (row_max + tl.log2(row_sum)) * LN2
    part_rows = tl.program_id(0).to(tl.int64) * num_rows + rows
    stored = rows < tl.where(part_start < seqlen, num_rows, 0)
    tl.store(part_lse_ptr + part_rows, lse, mask=stored)
    part_output_ptrs = part_output_ptr + tile_offsets(part_rows, value_dims, VALUE_DIM, 1)
    tl.store(part_output_ptrs, acc / row_sum[:, None], mask=stored[:, None] & (value_dims < VALUE_DIM)[None, :])


@triton.jit
def attention_decode_merge_kernel(
    part_output_ptr,
    part_lse_ptr,
    seqlens_ptr,
    output_ptr,
    lse_ptr,
    kv_heads,
    num_rows,
    capacity,
    num_parts,
    part_keys,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """One output row, from the parts in their order."""
    row = tl.program_id(0).to(tl.int64)
    batch_kv_head = row // num_rows
    seqlen = tl.load(seqlens_ptr + batch_kv_head // kv_heads)
    value_dims = tl.arange(0, BLOCK_VALUE)
    in_row = value_dims < VALUE_DIM

    largest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_VALUE], tl.float32)
    for part in range(0, tl.cdiv(tl.minimum(tl.maximum(seqlen, 0), capacity), part_keys)):
        part_row = (batch_kv_head * num_parts + part) * num_rows + row % num_rows
        part_lse = tl.load(part_lse_ptr + part_row)
        new_largest = tl.maximum(largest, part_lse)
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        rescale = tl.exp(largest - shift)
        weight = tl.exp(part_lse - shift)
        part_output = tl.load(part_output_ptr + part_row * VALUE_DIM + value_dims, mask=in_row, other=0.0)
        acc = acc * rescale + part_output * weight
        total = total * rescale + weight
        largest = new_largest

    total = tl.where(total == 0.0, 1.0, total)
    poison = tl.where((seqlen < 0) | (seqlen > capacity), float("nan"), 0.0)
    output = acc / total + poison
    tl.store(output_ptr + row * VALUE_DIM + value_dims, output.to(output_ptr.dtype.element_ty), mask=in_row)
    tl.store(lse_ptr + row + tl.arange(0, 1), largest + tl.log(total) + poison)


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
    output,
    lse,
):
    """Attention of query [batch, heads, len_q, head_dim] over the first cache_seqlens [batch] tokens of the caches.

    Caches are [batch, kv_heads, max_len, dim], or pages [num_blocks, kv_heads, block_size, dim] with block_table
    [batch, max_blocks]; of query's dtype, or int8 with scales shaped as they are without the last dimension; any
    strides. Writes output [batch, heads, len_q, value_dim] and lse [batch, heads, len_q] float32, both contiguous.
    """
    batch, heads, len_q, head_dim = query.shape
    num_blocks, kv_heads, block_size, value_dim = value_cache.shape
    if lse.numel() == 0:
        return
    capacity = block_size * (1 if block_table is None else block_table.shape[1])
    group = heads // kv_heads
    rows = group * len_q
    block_rows, block_k, num_warps = tile_for(rows, head_dim, value_dim, query.dtype, key_scale is not None)
    row_blocks = triton.cdiv(rows, block_rows)
    part_keys = part_keys_for(batch * kv_heads * row_blocks, max(capacity, 1), block_k, query.device)
    num_parts = max(1, triton.cdiv(capacity, part_keys))
    part_output = torch.empty((batch, kv_heads, num_parts, rows, value_dim), dtype=torch.float32, device=query.device)
    part_lse = torch.empty((batch, kv_heads, num_parts, rows), dtype=torch.float32, device=query.device)
    in_nats = query.dtype == torch.float32
    cache_seqlens = cache_seqlens.contiguous()
    no_bound = capacity + len_q
    with on_device_of(query):
        attention_decode_part_kernel[(batch * kv_heads * num_parts, row_blocks)](
            query,
            key_cache,
            value_cache,
            cache_seqlens,
            block_table,
            key_scale,
            value_scale,
            alibi_slopes,
            part_output,
            part_lse,
            *query.stride(),
            *key_cache.stride(),
            *value_cache.stride(),
            *((0, 0, 0) if key_scale is None else key_scale.stride()),
            *((0, 0, 0) if value_scale is None else value_scale.stride()),
            *alibi_strides(alibi_slopes),
            *((0, 0) if block_table is None else block_table.stride()),
            kv_heads,
            group,
            len_q,
            block_size,
            num_blocks,
            capacity,
            num_parts,
            part_keys,
            min(window_left, no_bound) if window_left >= 0 else no_bound,
            min(window_right, no_bound) if window_right >= 0 else no_bound,
            scale * units_per_nat(in_nats),
            head_dim,
            value_dim,
            padded_dim(head_dim),
            padded_dim(value_dim),
            block_rows,
            block_k,
            block_table is not None,
            key_scale is not None,
            alibi_slopes is not None,
            in_nats,
            INTERPRET and query.dtype == torch.bfloat16,
            num_warps=num_warps,
            num_stages=2,
            **COMPILE_OPTIONS,
        )
        attention_decode_merge_kernel[(batch * heads * len_q,)](
            part_output,
            part_lse,
            cache_seqlens,
            output,
            lse,
            kv_heads,
            rows,
            capacity,
            num_parts,
            part_keys,
            value_dim,
            triton.next_power_of_2(value_dim),
            num_warps=1,
            **COMPILE_OPTIONS,
        )
