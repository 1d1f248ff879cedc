"""Launches over lists of tensors: one for all tensors of one dtype; see csrc/cuda/multi_tensor.cuh."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..tensor_lists import Aligned, address_table, groups_of, plan_for
from .machine import Addresses, build, machine_of
from .rows import ACCESS_BYTES

THREADS = 256  # csrc/cuda/multi_tensor.cuh: kUpdateThreads


def scalar(tensor):
    """A tensor of one element, or None, as kernels read it: float32."""
    return None if tensor is None else tensor.float()


class Group(NamedTuple):
    """Tensors that share a launch."""

    dtype: torch.dtype
    key: object
    addresses: Addresses
    plan: torch.Tensor
    count: int
    wide: bool

    @property
    def blocks(self):
        return self.plan.shape[1]

    def launch(self, source, kernel, pointers=(), numbers=(), **macros):
        args = (self.addresses, self.plan, *pointers, self.count, self.wide, *numbers)
        machine = machine_of(self.plan)
        machine.launch(build(source, SCALAR=self.dtype, **macros), kernel, self.blocks, THREADS, args)


def launch_groups(lists, steps=(), keys=None) -> Iterator[Group]:
    """A `Group` for each dtype of lists[0] and each of `keys` (one for each tensor). Empty lists are absent: the first
    stands in their rows. `steps`, tensors of one element, become the last row."""
    for (dtype, key), indices in groups_of(lists, keys).items():
        rows = [[tensors[i] for i in indices] for tensors in (part or lists[0] for part in lists)]
        wide = all(tensor.data_ptr() % ACCESS_BYTES == 0 for row in rows for tensor in row)
        if steps:
            rows.append([steps[i] for i in indices])
        device = rows[0][0].device
        table = address_table(tuple(tuple(tensor.data_ptr() for tensor in row) for row in rows), device)
        plan = plan_for(tuple(tensor.numel() for tensor in rows[0]), device)
        yield Group(dtype, key, Addresses(tuple(t for row in rows for t in row), table), plan, len(indices), wide)


def launch_update(source, kernel, lists, arguments_of, steps=(), keys=None):
    """Runs an optimizer's kernel on params, grads, master_params and state.

    arguments_of: function of a group's key that gives (pointers, numbers): what the kernel takes after its tables, and
    what it takes last.
    """
    aligned = Aligned(*lists)
    for group in launch_groups(aligned.lists, steps, keys):
        group.launch(source, kernel, *arguments_of(group.key), MASTER=bool(lists[2]))
    aligned.write_back()
