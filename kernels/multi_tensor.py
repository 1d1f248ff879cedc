"""Kernels over lists of tensors: one launch for all tensors of one dtype.

A launch gets two small tables on the device. The pointer table holds the addresses of all operands, one row for each
list; the plan says, for each program, which tensor it works on, where it starts and how long the tensor is. Both are
kept between calls, so that a step of training whose tensors stay where they are copies nothing to the GPU.
"""

import torch
import triton
import triton.language as tl

from bigkern.tensor_lists import BLOCK, Aligned, address_table, groups_of, plan_for

from .common import on_device_of

NUM_WARPS = 8

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}

# Rows of the pointer table that every optimizer has; its state follows.
PARAM, GRAD, MASTER, STATE = (tl.constexpr(row) for row in range(4))


# ---- in kernels ------------------------------------------------------------------------------------------------------
#
# A kernel writes its update once, for the last block of a tensor (MASKED) and for all others, whose accesses need no
# mask and therefore move 128 bits at a time:
#
#     tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
#     for MASKED in tl.static_range(2):
#         if is_last == MASKED:
#             ...


@triton.jit
def block_of(plan_ptr, BLOCK: tl.constexpr):
    """(number of this program's tensor, offsets of its elements [BLOCK], which exist, 1 if not all do else 0)"""
    block = tl.program_id(0)
    num_blocks = tl.num_programs(0)
    tensor = tl.load(plan_ptr + block)
    start = tl.multiple_of(tl.load(plan_ptr + num_blocks + block), BLOCK)
    numel = tl.load(plan_ptr + 2 * num_blocks + block)
    offsets = start + tl.arange(0, BLOCK)
    return tensor, offsets, offsets < numel, (start + BLOCK > numel).to(tl.int32)


@triton.jit
def operand(table_ptr, row, tensor, num_tensors, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to the first element of a tensor of the list in `row` of the pointer table."""
    pointer = tl.load(table_ptr + row * num_tensors + tensor).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load_operand(
    table_ptr,
    row,
    tensor,
    num_tensors,
    offsets,
    exists,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    pointers = operand(table_ptr, row, tensor, num_tensors, DTYPE, ALIGNED) + offsets
    value = tl.load(pointers, mask=exists, other=0) if MASKED else tl.load(pointers)
    return value.to(tl.float32)


@triton.jit
def store_operand(
    table_ptr,
    row,
    tensor,
    num_tensors,
    offsets,
    exists,
    value,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    pointers = operand(table_ptr, row, tensor, num_tensors, DTYPE, ALIGNED) + offsets
    if MASKED:
        tl.store(pointers, value.to(DTYPE), mask=exists)
    else:
        tl.store(pointers, value.to(DTYPE))


@triton.jit
def load_gradient(
    table_ptr,
    tensor,
    num_tensors,
    offsets,
    exists,
    grad_factor_ptr,
    MAXIMIZE: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The gradient as an optimizer uses it, fp32 [BLOCK]"""
    grad = load_operand(table_ptr, GRAD, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED)
    if grad_factor_ptr is not None:
        grad = grad * tl.load(grad_factor_ptr).to(tl.float32)
    if MAXIMIZE:
        grad = -grad
    return grad


@triton.jit
def clear_gradient(
    table_ptr,
    tensor,
    num_tensors,
    offsets,
    exists,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    store_operand(table_ptr, GRAD, tensor, num_tensors, offsets, exists, zero, MASKED, DTYPE, ALIGNED)


@triton.jit
def load_parameter(
    table_ptr,
    tensor,
    num_tensors,
    offsets,
    exists,
    HAS_MASTER: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The weight that is updated, fp32 [BLOCK]"""
    row: tl.constexpr = MASTER if HAS_MASTER else PARAM
    dtype: tl.constexpr = tl.float32 if HAS_MASTER else DTYPE
    return load_operand(table_ptr, row, tensor, num_tensors, offsets, exists, MASKED, dtype, ALIGNED)


@triton.jit
def store_parameter(
    table_ptr,
    tensor,
    num_tensors,
    offsets,
    exists,
    param,
    HAS_MASTER: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    if HAS_MASTER:
        store_operand(table_ptr, MASTER, tensor, num_tensors, offsets, exists, param, MASKED, tl.float32, ALIGNED)
    store_operand(table_ptr, PARAM, tensor, num_tensors, offsets, exists, param, MASKED, DTYPE, ALIGNED)


@triton.jit
def load_step(table_ptr, row, tensor, num_tensors, STEP_DTYPE: tl.constexpr):
    """How many steps a tensor has taken, fp32, from the row of steps in the pointer table."""
    return tl.load(operand(table_ptr, row, tensor, num_tensors, STEP_DTYPE, False)).to(tl.float32)


@triton.jit
def is_taken(found_inf_ptr):
    """Whether the step is not skipped."""
    taken = True
    if found_inf_ptr is not None:
        taken = tl.load(found_inf_ptr) == 0
    return taken


# ---- launching -------------------------------------------------------------------------------------------------------


class Bucket:
    """Tensors for one launch.

    Attributes:
        table, plan, num_tensors, grid: as the kernels take them.
        options: the constexpr arguments that all optimizers' kernels share.
    """

    def __init__(self, lists, steps):
        first = lists[0][0]
        rows = tuple(tuple(tensor.data_ptr() for tensor in tensors or lists[0]) for tensors in lists)
        aligned = all(address % 16 == 0 for row in rows for address in row)
        if steps:
            rows += (tuple(step.data_ptr() for step in steps),)
        self.first, self.num_tensors = first, len(lists[0])
        self.table = address_table(rows, first.device)
        self.plan = plan_for(tuple(tensor.numel() for tensor in lists[0]), first.device)
        self.grid = (self.plan.shape[1],)
        self.options = {
            "DTYPE": TRITON_DTYPES[first.dtype],
            "ALIGNED": aligned,
            "BLOCK": BLOCK,
            "num_warps": NUM_WARPS,
        }


def buckets_of(lists, steps=(), keys=None):
    """A `Bucket` for each dtype of lists[0], and each of `keys` (one for each tensor) where they are given: (bucket,
    key). Empty tensors have no part in any. `steps` become the last row of the pointer table."""
    for (_, key), indices in groups_of(lists, keys).items():
        parts = [[tensors[i] for i in indices] if tensors else [] for tensors in lists]
        yield Bucket(parts, [steps[i] for i in indices] if steps else []), key


def triton_dtype(tensor):
    return TRITON_DTYPES[tensor.dtype]


def launch_update(kernel, lists, arguments_of, steps=(), keys=None, **constants):
    """Runs an optimizer's kernel on params, grads, master_params and state.

    Args:
        arguments_of: function of a bucket's key that gives the kernel's scalar arguments, in its own order.
        steps: tensors of one element, a row after the state.
        keys: one for each tensor; tensors of different keys are launched apart.
        constants: the constexpr arguments of this optimizer.
    """
    aligned = Aligned(*lists)
    for bucket, key in buckets_of(aligned.lists, steps, keys):
        with on_device_of(bucket.first):
            kernel[bucket.grid](
                bucket.table, bucket.plan, bucket.num_tensors, *arguments_of(key), **constants, **bucket.options
            )
    aligned.write_back()
