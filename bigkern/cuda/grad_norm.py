"""grad_norm: partial norms of blocks of all gradients, then one block that joins them and works out the factor."""

import math

import torch

from ..tensor_lists import Aligned
from .machine import build, machine_of
from .multi_tensor import THREADS, launch_groups, scalar

LARGEST_FLOAT = torch.finfo(torch.float32).max


def grad_norm_forward(grads, grad_scale, norm_type, max_norm, total_norm, grad_factor):
    largest = math.isinf(norm_type)
    aligned = Aligned(grads)  # holds the copies while the kernels read them
    groups = list(launch_groups(aligned.lists))
    blocks = [group.blocks for group in groups]
    partial = total_norm.new_empty(sum(blocks))
    for group, part in zip(groups, partial.split(blocks), strict=True):
        group.launch("grad_norm", "grad_norm_kernel", (part,), (largest,))
    numbers = (partial.numel(), largest, max_norm if max_norm <= LARGEST_FLOAT else math.inf)
    args = (partial, scalar(grad_scale), total_norm, grad_factor, *numbers)
    library = build("grad_norm", SCALAR=groups[0].dtype if groups else torch.float32)
    machine_of(partial).launch(library, "grad_factor_kernel", 1, THREADS, args)


def clip_grads_step(grads, grad_factor):
    aligned = Aligned(grads)
    for group in launch_groups(aligned.lists):
        group.launch("grad_norm", "clip_grads_kernel", (scalar(grad_factor),))
    aligned.write_back()
