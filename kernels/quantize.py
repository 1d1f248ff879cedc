"""int8 quantization with one scale per group of a tensor [outer, groups, inner], and the way back.

A group that fits in registers is read once (`quantize_resident_kernel`). A larger one is read twice, in chunks, so that
one group occupies the whole chip: for its range (`group_range_kernel`), then for its numbers (`quantize_kernel`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, block_size_for_row, num_multiprocessors, num_warps_for, on_device_of

TILE_ELEMENTS = 4096
LARGEST_RESIDENT_GROUP = 16384  # elements; 16 warps hold 32 each
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a subnormal scale would lose its digits


class GroupLayout(NamedTuple):
    """A source and a contiguous destination [outer, groups, inner] as kernels walk them: strides in elements."""

    outer: int
    groups: int
    inner: int
    source_strides: tuple
    result_strides: tuple


class GroupTile(NamedTuple):
    block_groups: int
    block_inner: int


def group_layout(source, result):
    """Leaves one long `inner` per group where the strides allow it."""
    (outer, groups, inner), strides, result_strides = source.shape, source.stride(), result.stride()
    merges = strides[0] == inner * strides[2] and result_strides[0] == inner * result_strides[2]
    if inner == 1:
        strides, result_strides = strides[::-1], result_strides[::-1]
    if inner == 1 or outer == 1 or merges:
        outer, inner = 1, outer * inner
        # Never used, but a stride of 0 keeps the alignment of every offset provable, and so the accesses wide.
        strides, result_strides = (0, *strides[1:]), (0, *result_strides[1:])
    return GroupLayout(outer, groups, inner, strides, result_strides)


def group_tile_for(layout):
    """A tile that is read along whichever of groups and inner is contiguous."""
    if layout.source_strides[1] == 1 and layout.source_strides[2] != 1:
        block_groups = block_size_for_row(layout.groups, 64)
        return GroupTile(block_groups, block_size_for_row(layout.inner, TILE_ELEMENTS // block_groups))
    block_inner = block_size_for_row(layout.inner, TILE_ELEMENTS)
    return GroupTile(block_size_for_row(layout.groups, TILE_ELEMENTS // block_inner), block_inner)


def num_chunks_for(num_steps, group_blocks, block_groups, num_programs):
    """Into how many chunks to cut each group: several programs per multiprocessor, few enough to reduce at once."""
    return max(min(num_steps, 8 * num_programs // group_blocks, 1024 // block_groups), 1)


@triton.jit
def round_half_even(x):
    """x rounded to an integer, for |x| < 2^22; libdevice's rint does not exist in triton's interpreter."""
    return (x + 12582912.0) - 12582912.0  # at 1.5 * 2^23 the spacing of fp32 is 1


@triton.jit
def extend_range(lo, hi, x):
    """The range [lo, hi] widened to hold x; NaN stays."""
    lo = tl.minimum(lo, x, propagate_nan=tl.PropagateNan.ALL)
    hi = tl.maximum(hi, x, propagate_nan=tl.PropagateNan.ALL)
    return lo, hi


@triton.jit
def reduce_range(lo, hi):
    """The range of each row of a tile of ranges; NaN where it holds NaN or an infinity."""
    poison = tl.sum(lo * 0 + hi * 0, axis=1)
    return tl.min(lo, axis=1) + poison, tl.max(hi, axis=1) + poison


@triton.jit
def scale_of_range(lo, hi, SYMMETRIC: tl.constexpr, SMALLEST_SCALE: tl.constexpr):
    """(scale, zero_point) of groups with values in [lo, hi], lo <= 0 <= hi; both fp32."""
    if SYMMETRIC:
        width = tl.div_rn(tl.maximum(-lo, hi), lo * 0 + 127.0)
    else:
        width = tl.div_rn(hi * 0.5 - lo * 0.5, lo * 0 + 127.5)  # hi - lo may overflow
    scale = tl.where(width == 0, 1.0, tl.maximum(width, SMALLEST_SCALE, propagate_nan=tl.PropagateNan.ALL))
    zero_point = scale * 0
    if not SYMMETRIC:
        exact = round_half_even(-128.0 - tl.div_rn(lo, scale))
        zero_point = tl.where(hi > lo, tl.minimum(tl.maximum(exact, -128.0), 127.0), 0.0)
    return scale, zero_point


@triton.jit
def quantize_values(x, scale, zero_point, SYMMETRIC: tl.constexpr):
    """int8 of fp32 x; 0 where scale is NaN."""
    q = round_half_even(tl.div_rn(x, scale)) + zero_point
    q = tl.minimum(tl.maximum(q, -127.0 if SYMMETRIC else -128.0), 127.0)
    return tl.where(scale == scale, q, 0.0).to(tl.int8)


@triton.jit
def store_scales(scale_ptr, zero_point_ptr, groups, num_groups, scale, zero_point, SYMMETRIC: tl.constexpr):
    tl.store(scale_ptr + groups, scale, mask=groups < num_groups)
    if not SYMMETRIC:
        zero_point = tl.where(scale == scale, zero_point, 0.0)
        tl.store(zero_point_ptr + groups, zero_point.to(tl.int32), mask=groups < num_groups)


@triton.jit
def tile_offsets(
    groups, step, num_groups, num_inner, outer_stride, group_stride, inner_stride, BLOCK_INNER: tl.constexpr
):
    """(offsets, mask) [groups, BLOCK_INNER] of the step-th piece of each group, counted along outer, then inner."""
    inner_blocks = tl.cdiv(num_inner, BLOCK_INNER)
    outer = (step // inner_blocks).to(tl.int64)
    inners = (step % inner_blocks).to(tl.int64) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    offsets = outer * outer_stride + groups[:, None] * group_stride + inners[None, :] * inner_stride
    return offsets, (groups < num_groups)[:, None] & (inners < num_inner)[None, :]


@triton.jit
def quantize_resident_kernel(
    input_ptr,
    qinput_ptr,
    scale_ptr,
    zero_point_ptr,
    num_groups,
    num_inner,
    input_group_stride,
    input_inner_stride,
    qinput_group_stride,
    qinput_inner_stride,
    SYMMETRIC: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    groups = tl.program_id(0).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    inners = tl.arange(0, BLOCK_INNER).to(tl.int64)
    mask = (groups < num_groups)[:, None] & (inners < num_inner)[None, :]
    input_offsets = groups[:, None] * input_group_stride + inners[None, :] * input_inner_stride
    x = tl.load(input_ptr + input_offsets, mask=mask, other=0).to(tl.float32)  # [BLOCK_GROUPS, BLOCK_INNER]

    lo, hi = extend_range(0.0, 0.0, x)
    lo, hi = reduce_range(lo, hi)
    scale, zero_point = scale_of_range(lo, hi, SYMMETRIC, SMALLEST_SCALE)
    q = quantize_values(x, scale[:, None], zero_point[:, None], SYMMETRIC)

    store_scales(scale_ptr, zero_point_ptr, groups, num_groups, scale, zero_point, SYMMETRIC)
    tl.store(qinput_ptr + groups[:, None] * qinput_group_stride + inners[None, :] * qinput_inner_stride, q, mask=mask)


@triton.jit
def group_range_kernel(
    input_ptr,
    chunk_lo_ptr,
    chunk_hi_ptr,
    num_groups,
    num_inner,
    num_steps,
    steps_per_chunk,
    num_chunks,
    input_outer_stride,
    input_group_stride,
    input_inner_stride,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """chunk_lo, chunk_hi [num_groups, num_chunks]: the range of each chunk of each group."""
    chunk = tl.program_id(0) % num_chunks
    groups = (tl.program_id(0) // num_chunks).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    lo = tl.zeros((BLOCK_GROUPS, BLOCK_INNER), dtype=tl.float32)
    hi = tl.zeros((BLOCK_GROUPS, BLOCK_INNER), dtype=tl.float32)
    first_step = chunk * steps_per_chunk
    for step in range(first_step, tl.minimum(first_step + steps_per_chunk, num_steps)):
        offsets, mask = tile_offsets(
            groups, step, num_groups, num_inner, input_outer_stride, input_group_stride, input_inner_stride, BLOCK_INNER
        )
        x = tl.load(input_ptr + offsets, mask=mask, other=0).to(tl.float32)
        lo, hi = extend_range(lo, hi, x)
    lo, hi = reduce_range(lo, hi)
    tl.store(chunk_lo_ptr + groups * num_chunks + chunk, lo, mask=groups < num_groups)
    tl.store(chunk_hi_ptr + groups * num_chunks + chunk, hi, mask=groups < num_groups)


@triton.jit
def quantize_kernel(
    input_ptr,
    chunk_lo_ptr,
    chunk_hi_ptr,
    qinput_ptr,
    scale_ptr,
    zero_point_ptr,
    num_groups,
    num_inner,
    num_steps,
    steps_per_chunk,
    num_chunks,
    input_outer_stride,
    input_group_stride,
    input_inner_stride,
    qinput_outer_stride,
    qinput_group_stride,
    qinput_inner_stride,
    SYMMETRIC: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """Quantizes one chunk of each group, after reducing the ranges of all its chunks: as cheap as a launch between."""
    chunk = tl.program_id(0) % num_chunks
    groups = (tl.program_id(0) // num_chunks).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    chunk_offsets = groups[:, None] * num_chunks + chunks[None, :]
    chunk_mask = (groups < num_groups)[:, None] & (chunks < num_chunks)[None, :]
    chunk_lo = tl.load(chunk_lo_ptr + chunk_offsets, mask=chunk_mask, other=0)
    chunk_hi = tl.load(chunk_hi_ptr + chunk_offsets, mask=chunk_mask, other=0)
    lo, hi = reduce_range(chunk_lo, chunk_hi)
    scale, zero_point = scale_of_range(lo, hi, SYMMETRIC, SMALLEST_SCALE)
    if chunk == 0:
        store_scales(scale_ptr, zero_point_ptr, groups, num_groups, scale, zero_point, SYMMETRIC)

    first_step = chunk * steps_per_chunk
    for step in range(first_step, tl.minimum(first_step + steps_per_chunk, num_steps)):
        offsets, mask = tile_offsets(
            groups, step, num_groups, num_inner, input_outer_stride, input_group_stride, input_inner_stride, BLOCK_INNER
        )
        x = tl.load(input_ptr + offsets, mask=mask, other=0).to(tl.float32)
        q = quantize_values(x, scale[:, None], zero_point[:, None], SYMMETRIC)
        offsets, mask = tile_offsets(
            groups,
            step,
            num_groups,
            num_inner,
            qinput_outer_stride,
            qinput_group_stride,
            qinput_inner_stride,
            BLOCK_INNER,
        )
        tl.store(qinput_ptr + offsets, q, mask=mask)


@triton.jit
def dequantize_kernel(
    qinput_ptr,
    scale_ptr,
    zero_point_ptr,
    output_ptr,
    num_groups,
    num_inner,
    num_steps,
    qinput_outer_stride,
    qinput_group_stride,
    qinput_inner_stride,
    output_outer_stride,
    output_group_stride,
    output_inner_stride,
    scale_stride,
    zero_point_stride,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    step = tl.program_id(0) % num_steps
    groups = (tl.program_id(0) // num_steps).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    offsets, mask = tile_offsets(
        groups, step, num_groups, num_inner, qinput_outer_stride, qinput_group_stride, qinput_inner_stride, BLOCK_INNER
    )
    q = tl.load(qinput_ptr + offsets, mask=mask, other=0).to(tl.int32)
    scale = tl.load(scale_ptr + groups * scale_stride, mask=groups < num_groups, other=0)
    if zero_point_ptr is not None:
        zero_point = tl.load(zero_point_ptr + groups * zero_point_stride, mask=groups < num_groups, other=0)
        q -= zero_point[:, None]

    output = q.to(tl.float32) * scale[:, None]

    offsets, mask = tile_offsets(
        groups, step, num_groups, num_inner, output_outer_stride, output_group_stride, output_inner_stride, BLOCK_INNER
    )
    tl.store(output_ptr + offsets, output, mask=mask)


def quantize_resident(layout, input, qinput, scale, zero_point, symmetric):
    block_inner = triton.next_power_of_2(max(layout.inner, 1))
    block_groups = group_tile_for(layout).block_groups
    quantize_resident_kernel[(triton.cdiv(layout.groups, block_groups),)](
        input,
        qinput,
        scale,
        zero_point,
        layout.groups,
        layout.inner,
        *layout.source_strides[1:],
        *layout.result_strides[1:],
        SYMMETRIC=symmetric,
        SMALLEST_SCALE=SMALLEST_SCALE,
        BLOCK_GROUPS=block_groups,
        BLOCK_INNER=block_inner,
        num_warps=num_warps_for(block_groups * block_inner),
        **COMPILE_OPTIONS,
    )


def quantize_by_chunks(layout, input, qinput, scale, zero_point, symmetric):
    tile = group_tile_for(layout)
    num_warps = num_warps_for(tile.block_groups * tile.block_inner)
    group_blocks = triton.cdiv(layout.groups, tile.block_groups)
    num_steps = layout.outer * triton.cdiv(layout.inner, tile.block_inner)
    num_chunks = num_chunks_for(num_steps, group_blocks, tile.block_groups, num_multiprocessors(input.device))
    steps_per_chunk = triton.cdiv(num_steps, num_chunks)
    chunk_lo, chunk_hi = torch.empty(2, layout.groups, num_chunks, dtype=torch.float32, device=input.device)
    sizes = (layout.groups, layout.inner, num_steps, steps_per_chunk, num_chunks)
    group_range_kernel[(group_blocks * num_chunks,)](
        input,
        chunk_lo,
        chunk_hi,
        *sizes,
        *layout.source_strides,
        BLOCK_GROUPS=tile.block_groups,
        BLOCK_INNER=tile.block_inner,
        num_warps=num_warps,
        **COMPILE_OPTIONS,
    )
    quantize_kernel[(group_blocks * num_chunks,)](
        input,
        chunk_lo,
        chunk_hi,
        qinput,
        scale,
        zero_point,
        *sizes,
        *layout.source_strides,
        *layout.result_strides,
        SYMMETRIC=symmetric,
        SMALLEST_SCALE=SMALLEST_SCALE,
        BLOCK_GROUPS=tile.block_groups,
        BLOCK_INNER=tile.block_inner,
        BLOCK_CHUNKS=triton.next_power_of_2(num_chunks),
        num_warps=num_warps,
        **COMPILE_OPTIONS,
    )


def quantize_forward(input, symmetric, qinput, scale, zero_point):
    layout = group_layout(input, qinput)
    if layout.groups == 0:
        return
    resident_elements = triton.next_power_of_2(max(layout.inner, 1)) * group_tile_for(layout).block_groups
    fits = layout.inner == 0 or (layout.outer == 1 and resident_elements <= LARGEST_RESIDENT_GROUP)
    with on_device_of(input):
        quantize = quantize_resident if fits else quantize_by_chunks
        quantize(layout, input, qinput, scale, zero_point, symmetric)


def dequantize_forward(qinput, scale, zero_point, output):
    layout = group_layout(qinput, output)
    if output.numel() == 0:
        return
    tile = group_tile_for(layout)
    num_steps = layout.outer * triton.cdiv(layout.inner, tile.block_inner)
    with on_device_of(qinput):
        dequantize_kernel[(triton.cdiv(layout.groups, tile.block_groups) * num_steps,)](
            qinput,
            scale,
            zero_point,
            output,
            layout.groups,
            layout.inner,
            num_steps,
            *layout.source_strides,
            *layout.result_strides,
            scale.stride(0),
            0 if zero_point is None else zero_point.stride(0),
            BLOCK_GROUPS=tile.block_groups,
            BLOCK_INNER=tile.block_inner,
            num_warps=num_warps_for(tile.block_groups * tile.block_inner),
            **COMPILE_OPTIONS,
        )
