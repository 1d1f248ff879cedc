"""grad_norm: partial norms of blocks of all gradients, then one program that joins them and works out the factor."""

import math

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, on_device_of
from .multi_tensor import Aligned, block_of, buckets_of, load_operand, store_operand

# Partial norms that the joining program takes at a time.
JOIN_BLOCK = 1024


@triton.jit
def join(norms, LARGEST: tl.constexpr):
    """One number for many: their sum, or the largest, NaN if one is."""
    if LARGEST:
        any_nan = tl.max((norms != norms).to(tl.int32), 0) > 0
        joined = tl.where(any_nan, float("nan"), tl.max(norms, 0))
    else:
        joined = tl.sum(norms, 0)
    return joined


@triton.jit
def grad_norm_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    partial_ptr,
    LARGEST: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial [programs]: the sum of squares, or the largest magnitude, of one block."""
    tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
    for MASKED in tl.static_range(2):
        if is_last == MASKED:
            grad = load_operand(table_ptr, 0, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED)
            norm = join(tl.abs(grad) if LARGEST else grad * grad, LARGEST)
            tl.store(partial_ptr + tl.program_id(0), norm)


@triton.jit
def grad_factor_kernel(
    partial_ptr,
    grad_scale_ptr,
    total_norm_ptr,
    grad_factor_ptr,
    num_partial,
    max_norm,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, num_partial, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        norms = tl.load(partial_ptr + offsets, mask=offsets < num_partial, other=0)
        lanes = tl.maximum(lanes, norms, propagate_nan=tl.PropagateNan.ALL) if LARGEST else lanes + norms
    total = join(lanes, LARGEST)
    if not LARGEST:
        total = tl.sqrt_rn(total)
    scale = 1.0
    if grad_scale_ptr is not None:
        scale = tl.load(grad_scale_ptr).to(tl.float32)
    total = total / scale
    factor = max_norm / (total + 1e-6)
    factor = tl.where(factor > 1, 1.0, factor)  # a minimum could turn NaN into 1
    tl.store(total_norm_ptr, total)
    tl.store(grad_factor_ptr, factor / scale)


@triton.jit
def clip_grads_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    grad_factor_ptr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
    factor = tl.load(grad_factor_ptr).to(tl.float32)
    for MASKED in tl.static_range(2):
        if is_last == MASKED:
            grad = load_operand(table_ptr, 0, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED)
            store_operand(table_ptr, 0, tensor, num_tensors, offsets, exists, grad * factor, MASKED, DTYPE, ALIGNED)


def grad_norm_forward(grads, grad_scale, norm_type, max_norm, total_norm, grad_factor):
    largest = math.isinf(norm_type)
    aligned = Aligned(grads)  # holds the copies while the kernels read them
    buckets = [bucket for bucket, _ in buckets_of(aligned.lists)]
    programs = [bucket.grid[0] for bucket in buckets]
    partial = torch.empty(sum(programs), dtype=torch.float32, device=total_norm.device)
    with on_device_of(total_norm):
        for bucket, part in zip(buckets, partial.split(programs), strict=True):
            grad_norm_kernel[bucket.grid](
                bucket.table,
                bucket.plan,
                bucket.num_tensors,
                part,
                LARGEST=largest,
                **bucket.options,
                **COMPILE_OPTIONS,
            )
        grad_factor_kernel[(1,)](
            partial,
            grad_scale,
            total_norm,
            grad_factor,
            partial.numel(),
            max_norm,
            LARGEST=largest,
            BLOCK=JOIN_BLOCK,
            **COMPILE_OPTIONS,
        )


def clip_grads_step(grads, grad_factor):
    aligned = Aligned(grads)
    with on_device_of(grad_factor):
        for bucket, _ in buckets_of(aligned.lists):
            clip_grads_kernel[bucket.grid](
                bucket.table, bucket.plan, bucket.num_tensors, grad_factor, **bucket.options, **COMPILE_OPTIONS
            )
    aligned.write_back()
