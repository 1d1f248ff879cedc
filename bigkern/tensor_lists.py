"""What launches over lists of tensors need, for Triton and CUDA C++ alike: tables on the device, and tensors that lie
as a kernel walks them."""

import functools

import torch

BLOCK = 4096  # elements that a program, or a block of threads, updates


# ---- tables ----------------------------------------------------------------------------------------------------------


def _to_device(values, device):
    """An int64 tensor on `device`; to a GPU through pinned memory, without waiting for it."""
    table = torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


@functools.lru_cache(maxsize=256)
def plan_for(sizes, device):
    """int64 [3, blocks]: number of the tensor, first element, elements in the tensor."""
    tensors, starts, numels = [], [], []
    for tensor, numel in enumerate(sizes):
        for start in range(0, numel, BLOCK):
            tensors.append(tensor)
            starts.append(start)
            numels.append(numel)
    return _to_device([tensors, starts, numels], device)


@functools.lru_cache(maxsize=256)
def address_table(rows, device):
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


def groups_of(lists, keys=None):
    """The numbers of the tensors that share a launch, by (dtype of lists[0], key): `keys` has one for each tensor, or
    is None. Empty tensors have no part in any."""
    keys = [None] * len(lists[0]) if keys is None else keys
    chosen = {}
    for i, (tensor, key) in enumerate(zip(lists[0], keys, strict=True)):
        if tensor.numel():
            chosen.setdefault((tensor.dtype, key), []).append(i)
    return chosen


# ---- steps -----------------------------------------------------------------------------------------------------------


def on_host(state_steps):
    """The steps as numbers; None where they are on a GPU, from which nothing is read back: kernels read them there."""
    return [step.item() for step in state_steps] if state_steps[0].device.type == "cpu" else None
