"""Writing new keys and values into attention_decode's cache, as they are or as int8 with a scale per token and head."""

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, num_warps_for, on_device_of
from .quantize import SMALLEST_SCALE, extend_range, quantize_values, reduce_range, scale_of_range


@triton.jit
def cache_append_kernel(
    new_ptr,
    cache_ptr,
    scale_ptr,
    seqlens_ptr,
    table_ptr,
    new_stride_batch,
    new_stride_head,
    new_stride_len,
    new_stride_dim,
    cache_stride_block,
    cache_stride_head,
    cache_stride_len,
    cache_stride_dim,
    scale_stride_block,
    scale_stride_head,
    scale_stride_len,
    table_stride_batch,
    table_stride_block,
    kv_heads,
    len_new,
    block_size,
    num_blocks,
    capacity,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGED: tl.constexpr,
    IS_INT8: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    """One token of one head."""
    token = tl.program_id(0) % len_new
    batch_head = tl.program_id(0) // len_new
    batch = (batch_head // kv_heads).to(tl.int64)
    head = (batch_head % kv_heads).to(tl.int64)
    dims = tl.arange(0, BLOCK_DIM)
    in_row = dims < DIM

    place = tl.load(seqlens_ptr + batch) + token
    has_place = (place >= 0) & (place < capacity)
    page = batch
    slot = place.to(tl.int64)
    if PAGED:
        table_ptrs = table_ptr + batch * table_stride_batch + (place // block_size) * table_stride_block
        page = tl.load(table_ptrs, mask=has_place, other=-1).to(tl.int64)
        slot = slot % block_size
    has_place = has_place & (page >= 0) & (page < num_blocks)
    stored = dims < tl.where(has_place, DIM, 0)

    new_ptrs = new_ptr + batch * new_stride_batch + head * new_stride_head + token.to(tl.int64) * new_stride_len
    new = tl.load(new_ptrs + dims * new_stride_dim, mask=in_row, other=0.0)
    cache_ptrs = cache_ptr + page * cache_stride_block + head * cache_stride_head + slot * cache_stride_len
    if IS_INT8:
        new = new.to(tl.float32)[None, :]
        lo, hi = extend_range(0.0, 0.0, new)
        lo, hi = reduce_range(lo, hi)
        scale, zero_point = scale_of_range(lo, hi, True, SMALLEST_SCALE)  # [1]
        q = quantize_values(new, scale[:, None], zero_point[:, None], True)
        tl.store(cache_ptrs + dims[None, :] * cache_stride_dim, q, mask=stored[None, :])
        scale_ptrs = scale_ptr + page * scale_stride_block + head * scale_stride_head + slot * scale_stride_len
        tl.store(scale_ptrs + tl.arange(0, 1), scale, mask=tl.arange(0, 1) < tl.where(has_place, 1, 0))
    else:
        tl.store(cache_ptrs + dims * cache_stride_dim, new, mask=stored)


def cache_append_step(caches, scales, key, value, cache_seqlens, block_table):
    """Writes key and value [batch, kv_heads, len_new, dim] behind the first cache_seqlens [batch] tokens of the caches,
    which are as attention_decode_forward takes them. A token without a place is not written."""
    batch, kv_heads, len_new, _ = key.shape
    num_blocks, _, block_size, _ = caches[0].shape
    if batch * kv_heads * len_new == 0:
        return
    cache_seqlens = cache_seqlens.contiguous()
    with on_device_of(key):
        for i, new in enumerate((key, value)):
            dim = new.shape[3]
            if dim == 0:
                continue
            cache_append_kernel[(batch * kv_heads * len_new,)](
                new,
                caches[i],
                scales[i] if scales else None,
                cache_seqlens,
                block_table,
                *new.stride(),
                *caches[i].stride(),
                *(scales[i].stride() if scales else (0, 0, 0)),
                *((0, 0) if block_table is None else block_table.stride()),
                kv_heads,
                len_new,
                block_size,
                num_blocks,
                block_size * (1 if block_table is None else block_table.shape[1]),
                dim,
                triton.next_power_of_2(dim),
                block_table is not None,
                bool(scales),
                SMALLEST_SCALE,
                num_warps=num_warps_for(dim),
                **COMPILE_OPTIONS,
            )
