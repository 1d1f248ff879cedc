"""Kernels over lists of tensors: one launch for all tensors of one dtype.

A launch gets two small tables on the device. The pointer table holds the addresses of all operands, one row for each
list; the plan says, for each program, which tensor it works on, where it starts and how long the tensor is. Both are
kept between calls, so that a step of training whose tensors stay where they are copies nothing to the GPU.
"""

import functools

import torch
import triton
import triton.language as tl

from .common import on_device_of

BLOCK = 4096  # elements a program updates; 16 a thread with 8 warps
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


# ---- tables ----------------------------------------------------------------------------------------------------------


def _to_device(values, device):
    """An int64 tensor on `device`; to a GPU through pinned memory, without waiting for it."""
    table = torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


@functools.lru_cache(maxsize=256)
def plan_for(sizes, device):
    """int64 [3, programs]: number of the tensor, first element, elements in the tensor."""
    tensors, starts, numels = [], [], []
    for tensor, numel in enumerate(sizes):
        for start in range(0, numel, BLOCK):
            tensors.append(tensor)
            starts.append(start)
            numels.append(numel)
    return _to_device([tensors, starts, numels], device)


@functools.lru_cache(maxsize=256)
def pointer_table(rows, device):
    """int64 [lists, tensors]: `rows` of addresses on the device."""
    return _to_device(rows, device)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def is_dense(tensor):
    """Whether the elements fill their memory without gaps or overlaps, in any order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_layout(a, b):
    """Whether two dense tensors of one shape have their elements in the same order."""
    return (a.is_contiguous() and b.is_contiguous()) or all(
        size == 1 or first == second for size, first, second in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


class Aligned:
    """The lists with every operand of a tensor in one dense layout: what lies otherwise is replaced by a copy, which
    `write_back` returns to its place."""

    def __init__(self, *lists):
        self.lists = [list(tensors) for tensors in lists]
        self.copies = []
        for i, first in enumerate(self.lists[0]):
            dense = is_dense(first)
            layout = first if dense else torch.empty_like(first, memory_format=torch.contiguous_format)
            for tensors in self.lists:
                if tensors and not same_layout(tensors[i], layout):
                    copy = torch.empty_like(layout, dtype=tensors[i].dtype).copy_(tensors[i])
                    self.copies.append((tensors[i], copy))
                    tensors[i] = copy

    def write_back(self):
        for original, copy in self.copies:
            original.copy_(copy)


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
        self.table = pointer_table(rows, first.device)
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
    keys = [None] * len(lists[0]) if keys is None else keys
    chosen = {}
    for i, (tensor, key) in enumerate(zip(lists[0], keys, strict=True)):
        if tensor.numel():
            chosen.setdefault((tensor.dtype, key), []).append(i)
    for (_, key), indices in chosen.items():
        parts = [[tensors[i] for i in indices] if tensors else [] for tensors in lists]
        yield Bucket(parts, [steps[i] for i in indices] if steps else []), key


def count_steps(state_steps, found_inf):
    """Adds one to every step, unless found_inf says that this step is skipped; on the device, nothing is waited for."""
    if found_inf is None:
        torch._foreach_add_(state_steps, 1)
    else:
        taken = (found_inf == 0).to(state_steps[0].dtype).reshape(())
        torch._foreach_add_(state_steps, [taken] * len(state_steps))


def on_host(state_steps):
    """The steps as numbers; None where they are on a GPU, from which nothing is read back: kernels read them there."""
    return [step.item() for step in state_steps] if state_steps[0].device.type == "cpu" else None


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
