"""Normalization of rows: how layer_norm, rms_norm and add_layer_norm launch the kernels of csrc/cuda/norm.cuh and
norm_backward.cuh, each from a source of its own.

Forward, a team of threads takes each row and keeps it in shared memory, where it fits. Backward, a block keeps a row of
each input and one sum a column for each gradient of a parameter; where that does not fit, rows are read twice.
"""

from typing import NamedTuple

import torch

from .machine import build, machine_of
from .rows import (
    ACCESS_BYTES,
    STATIC_SHARED_BYTES,
    THREADS,
    WARP,
    Team,
    accesses,
    aligned,
    block_for,
    ceil_div,
    meet,
    power_of_two_from,
    slot_bytes_for,
    team_for,
)

LARGEST_TEAM = 512  # threads
LARGEST_WARP_ROW = 128  # accesses of a backward row that a warp takes
THREADS_PER_MULTIPROCESSOR = 768  # of a backward: more blocks leave more partial sums
SMALL_SLOTS = 48 * 1024  # bytes of the slots of a block of several teams
STRIP_LANES, STRIP_WALKERS = 32, 8  # csrc/cuda/norm_backward.cuh
BLOCKS_PER_MULTIPROCESSOR = 4  # of the walk down strips
TERMS = 5  # floats of a RowTerms


class Addition(NamedTuple):
    """The further arguments of a forward; residual None: nothing is added. sum None: it is not kept."""

    residual: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    dropout_p: float = 0.0
    sum: torch.Tensor | None = None


class AdditionGradient(NamedTuple):
    """The further arguments of a backward: the sum's own gradient, and where input's goes through dropout."""

    grad_sum: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    dropout_p: float = 0.0
    grad_dropped: torch.Tensor | None = None


def dropout_scalars(dropout_p):
    """(threshold that the Philox word of a kept element reaches, what kept elements are multiplied by)"""
    return int(dropout_p * 2**32), 1 / (1 - dropout_p)


def readable(parameter, dtype):
    """A parameter that kernels for `dtype` read: contiguous, of that dtype or float32."""
    if parameter is None:
        return None
    return (parameter if parameter.dtype in (dtype, torch.float32) else parameter.float()).contiguous()


def is_float(parameter):
    return parameter is not None and parameter.dtype == torch.float32


def strides_of(matrix):
    """(row stride, column stride); 0 where there is no matrix, or one row: a multiple of everything."""
    if matrix is None:
        return 0, 0
    return (0 if matrix.shape[0] == 1 else matrix.stride(0)), matrix.stride(1)


def side_by_side(*matrices):
    """(matrix, its strides between rows) of each that is not None, or nothing where a row's elements lie apart."""
    present = [matrix for matrix in matrices if matrix is not None]
    if any(strides_of(matrix)[1] != 1 and matrix.shape[1] > 1 for matrix in present):
        return []
    return [(matrix, strides_of(matrix)[:1]) for matrix in present]


# ---- forward ---------------------------------------------------------------------------------------------------------


def launch_forward(source, input, weight, bias, eps, output, mean, rstd, addition=Addition()):  # noqa: B008
    """Fills output, mean and rstd (and the addition's sum); mean None: root-mean-square normalization."""
    rows, columns = input.shape
    if input.numel() == 0:
        for statistic in (mean, rstd):
            if statistic is not None:
                statistic.fill_(float("nan"))
        return
    machine, element_size = machine_of(input), input.element_size()
    placed = side_by_side(input, addition.residual, addition.sum, output)
    wide = bool(placed) and meet(ACCESS_BYTES // element_size, *placed)
    team = team_for(rows, accesses(columns, element_size, wide), LARGEST_TEAM)
    slot_bytes = slot_bytes_for(columns, element_size)
    kept = slot_bytes * team.rows <= machine.shared_memory - STATIC_SHARED_BYTES
    sum = addition.sum
    if sum is None and addition.residual is not None and not kept:
        sum = output  # a place for the sum until the output takes it
    weight, bias = (readable(parameter, input.dtype) for parameter in (weight, bias))
    args = (input, addition.residual, addition.rng_state, weight, bias, output, sum, mean, rstd, rows, columns)
    args = (*args, *strides_of(input), *strides_of(addition.residual), is_float(weight), is_float(bias))
    args = (*args, *dropout_scalars(addition.dropout_p), eps, wide, kept, team.size, slot_bytes)
    machine.launch(
        build(source, SCALAR=input.dtype),
        "norm_forward_kernel",
        ceil_div(rows, team.rows),
        team.block,
        args,
        shared_bytes=slot_bytes * team.rows if kept else 0,
    )


# ---- backward --------------------------------------------------------------------------------------------------------


class RowsPlan(NamedTuple):
    team: Team
    row_bytes: int
    slot_bytes: int
    blocks: int

    @property
    def shared_bytes(self):
        return self.slot_bytes * self.team.rows


def rows_plan_for(rows, columns, element_size, wide, num_wanted, machine):
    """For rows that a block keeps in shared memory, with `num_wanted` sums a column; None where they do not fit."""
    row_bytes = ceil_div(columns * element_size, ACCESS_BYTES) * ACCESS_BYTES
    slot_bytes = 2 * row_bytes + ceil_div(num_wanted * columns * 4, ACCESS_BYTES) * ACCESS_BYTES
    most = machine.shared_memory - STATIC_SHARED_BYTES
    if slot_bytes > most:
        return None
    num_accesses = accesses(columns, element_size, wide)
    if num_accesses <= LARGEST_WARP_ROW:
        size = min(power_of_two_from(ceil_div(num_accesses, 2)), WARP)
        # A block is at least a warp, and all of its teams have slots.
        block = block_for(rows * size)
        while block > WARP and block // size * slot_bytes > SMALL_SLOTS:
            block //= 2
        team = Team(size, block)
        if team.rows * slot_bytes > most:
            team = Team(WARP, WARP)
    else:
        size = min(max(power_of_two_from(ceil_div(num_accesses, 4)), 2 * WARP), LARGEST_TEAM)
        team = Team(size, size)
    fitting = most // (slot_bytes * team.rows)
    per_multiprocessor = max(min(fitting, THREADS_PER_MULTIPROCESSOR // team.block), 1)
    blocks = min(ceil_div(rows, team.rows), per_multiprocessor * machine.num_multiprocessors)
    return RowsPlan(team, row_bytes, slot_bytes, blocks)


def chunks_for(rows, tiles, machine):
    """Into how many chunks to cut the rows of each strip, none without a row for each of its walkers."""
    most = ceil_div(BLOCKS_PER_MULTIPROCESSOR * machine.num_multiprocessors, tiles)
    return max(min(ceil_div(rows, STRIP_WALKERS), most), 1)


def partial_sums(count, input, *grads):
    """fp32 [count, columns] for each gradient that is wanted."""
    shape = (count, input.shape[1])
    return [None if grad is None else input.new_empty(shape, dtype=torch.float32) for grad in grads]


class Gradients(NamedTuple):
    """What kernels write; None where it is not wanted."""

    input: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def launch_backward(source, grad_output, input, weight, mean, rstd, grads, addition=AdditionGradient()):  # noqa: B008
    """Fills `grads` and the addition's; mean None: root-mean-square normalization."""
    rows, columns = input.shape
    wanted = [grad for grad in (grads.weight, grads.bias) if grad is not None]
    if input.numel() == 0:
        for grad in wanted:
            grad.zero_()
        return
    machine, element_size = machine_of(input), input.element_size()
    width = ACCESS_BYTES // element_size
    placed = side_by_side(grad_output, input, addition.grad_sum, grads.input, addition.grad_dropped)
    wide = bool(placed) and columns % width == 0 and aligned(width, *placed)
    library, weight = build(source, SCALAR=input.dtype), readable(weight, input.dtype)
    tensors = (addition.grad_sum, addition.rng_state, grads.input, addition.grad_dropped)
    strides = (*strides_of(grad_output), *strides_of(input))
    scalars = (*strides, *strides_of(addition.grad_sum), is_float(weight), *dropout_scalars(addition.dropout_p), wide)
    plan = rows_plan_for(rows, columns, element_size, wide, len(wanted), machine)
    if plan:
        partials = partial_sums(plan.blocks, input, grads.weight, grads.bias)
        args = (grad_output, input, weight, mean, rstd, *tensors, *partials, rows, columns, *scalars)
        args = (*args, plan.team.size, plan.row_bytes, plan.slot_bytes)
        machine.launch(
            library, "norm_backward_rows_kernel", plan.blocks, plan.team.block, args, shared_bytes=plan.shared_bytes
        )
    else:
        terms = input.new_empty(rows, TERMS, dtype=torch.float32)
        args = (grad_output, input, weight, mean, rstd, terms, columns, *strides, is_float(weight), wide)
        block = block_for(ceil_div(accesses(columns, element_size, wide), 4), LARGEST_TEAM)
        machine.launch(library, "norm_backward_sums_kernel", rows, block, args)
        tiles = ceil_div(columns, STRIP_LANES * (width if wide else 1))
        chunks = chunks_for(rows, tiles, machine)
        partials = partial_sums(chunks, input, grads.weight, grads.bias)
        args = (grad_output, input, weight, terms, *tensors, *partials, rows, columns, *scalars, chunks)
        machine.launch(library, "norm_backward_strips_kernel", tiles * chunks, STRIP_LANES * STRIP_WALKERS, args)
    if wanted:
        launch_reduce(machine, library, partials, grads, input.dtype)


def launch_reduce(machine, library, partials, grads, dtype):
    """The sums of the partial gradients, in the dtypes that parameters have."""
    outputs = [
        grad
        if grad is None or grad.dtype in (dtype, torch.float32)
        else grad.new_empty(grad.shape, dtype=torch.float32)
        for grad in (grads.weight, grads.bias)
    ]
    count, columns = next(partial.shape for partial in partials if partial is not None)
    args = (*partials, *outputs, count, columns, *map(is_float, outputs))
    machine.launch(library, "norm_reduce_kernel", (ceil_div(columns, STRIP_LANES), 2), THREADS, args)
    for output, grad in zip(outputs, (grads.weight, grads.bias), strict=True):
        if output is not grad:
            grad.copy_(output)
