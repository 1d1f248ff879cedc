"""Cross entropy of logits [N, C, D]: which rows a team of threads, a block or several blocks take.

The kernels are in csrc/cuda/cross_entropy.cu and cross_entropy_backward.cu: `rows` where the classes of a row lie side
by side, `positions` where the D positions do.
"""

from typing import NamedTuple

import torch

from .machine import build, machine_of
from .rows import (
    ACCESS_BYTES,
    IN_FLIGHT,
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
    power_of_two_to,
    slot_bytes_for,
    team_for,
)

# csrc/cuda: sizeof(RowLoss), RowSum and RowGrad; kThreads and kLargestTeam.
ROW_LOSS_BYTES, ROW_SUM_BYTES, ROW_GRAD_BYTES = 8, 16, 24
LARGEST_FORWARD_TEAM, LARGEST_BACKWARD_TEAM = 256, 512
LARGEST_REDUCE_BLOCK = 1024
BLOCKS_PER_MULTIPROCESSOR = 8
SMALLEST_CHUNK = 1024  # accesses
BACKWARD_PIECE = 2048  # accesses; their 32 KB in flight leave shared memory to other blocks
WIDEST = 8  # elements of an access, at most


class Rows(NamedTuple):
    """Logits and what goes with them as kernels walk them: (outer, class, inner) strides in elements."""

    outer: int
    classes: int
    inner: int
    strides: tuple
    target_strides: tuple
    grad_strides: tuple
    in_positions: bool
    wide: bool
    element_size: int

    @property
    def count(self):
        return self.outer * self.inner

    @property
    def width(self):
        return ACCESS_BYTES // self.element_size if self.wide else 1


def row_strides(tensor):
    """Strides, 0 where the dimension has one element: never used, and a multiple of everything."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def rows_of(input, target, grads=()):
    """`grads`: the gradients that are written, all with the same strides."""
    outer, classes, inner = input.shape
    strides, target_strides = row_strides(input), row_strides(target)
    grad_strides = row_strides(grads[0]) if grads else (0, 0, 0)
    if not target.is_floating_point():
        target_strides = (target_strides[0], 0, target_strides[1])
    accessed = [(input, strides), *((grad, grad_strides) for grad in grads)]
    if target.is_floating_point():
        accessed.append((target, target_strides))
    width = ACCESS_BYTES // input.element_size()
    in_positions = inner > 1 and strides[1] != 1
    if in_positions:
        side_by_side = all(strides[2] == 1 for _, strides in accessed) and inner % width == 0
        wide = side_by_side and aligned(width, *((tensor, strides[:2]) for tensor, strides in accessed))
    else:
        side_by_side = all(strides[1] == 1 for _, strides in accessed)
        wide = side_by_side and meet(width, *((tensor, strides[::2]) for tensor, strides in accessed))
    return Rows(outer, classes, inner, strides, target_strides, grad_strides, in_positions, wide, input.element_size())


# ---- who takes which rows --------------------------------------------------------------------------------------------


def chunks_for(num_steps, num_blocks, machine):
    """Blocks per row or tile, none without a step of its own, so that all multiprocessors have several."""
    return max(min(num_steps, BLOCKS_PER_MULTIPROCESSOR * machine.num_multiprocessors // num_blocks), 1)


class RowPlan(NamedTuple):
    team: Team
    chunks: int  # blocks per row
    blocks: int  # teams' blocks, or rows

    @property
    def grid(self):
        return self.blocks * self.chunks


def row_plan_for(rows, machine):
    """Forward: one team per row; several blocks where rows are wide and too few."""
    row_accesses = accesses(rows.classes, rows.element_size, rows.wide)
    team = team_for(rows.count, row_accesses, LARGEST_FORWARD_TEAM)
    blocks = ceil_div(rows.count, team.rows)
    chunks = chunks_for(row_accesses // SMALLEST_CHUNK, blocks, machine) if team.rows == 1 else 1
    return RowPlan(team, chunks, blocks)


def backward_row_plan_for(rows, machine, anew):
    """Pieces of rows; whole ones where a block needs their sums, unless that would leave multiprocessors idle."""
    row_accesses = accesses(rows.classes, rows.element_size, rows.wide)
    in_pieces = not anew or 2 * rows.count <= machine.num_multiprocessors
    team = team_for(rows.count, row_accesses, THREADS if in_pieces else LARGEST_BACKWARD_TEAM)
    chunks = ceil_div(row_accesses, BACKWARD_PIECE) if in_pieces and team.rows == 1 else 1
    return RowPlan(team, chunks, ceil_div(rows.count, team.rows))


def kept_classes_for(rows, plan, machine):
    """(classes that a team keeps in shared memory: all of its piece, or as many as fit; the bytes for them)"""
    piece = rows.classes if plan.chunks == 1 else ceil_div(ceil_div(rows.classes, plan.chunks), WIDEST) * WIDEST
    available = (machine.shared_memory - STATIC_SHARED_BYTES) // plan.team.rows - 2 * ACCESS_BYTES
    kept = min(piece, available // rows.element_size // WIDEST * WIDEST)
    return kept, slot_bytes_for(kept, rows.element_size)


class PositionPlan(NamedTuple):
    lanes: int
    block: int
    chunks: int  # blocks per tile
    blocks: int  # tiles

    @property
    def grid(self):
        return self.blocks * self.chunks


def position_plan_for(rows, machine):
    """Lanes side by side, as many as there are positions for, but fewer (down to 64 bytes) rather than idle blocks."""
    lanes = min(power_of_two_from(ceil_div(rows.inner, rows.width)), WARP)
    while lanes > 4 and rows.outer * ceil_div(rows.inner, lanes * rows.width) < 2 * machine.num_multiprocessors:
        lanes //= 2
    blocks = rows.outer * ceil_div(rows.inner, lanes * rows.width)
    walkers = min(power_of_two_to(rows.classes // IN_FLIGHT), THREADS // lanes)
    block = max(walkers * lanes, WARP)
    chunks = chunks_for(rows.classes * lanes // (block * 2 * IN_FLIGHT), blocks, machine)
    return PositionPlan(lanes, block, chunks, blocks)


# ---- launches --------------------------------------------------------------------------------------------------------


def by_kind(target):
    """(index target, probability target), one of them None."""
    return (None, target) if target.is_floating_point() else (target, None)


def in_float32(weight):
    return None if weight is None else weight.to(torch.float32).contiguous()


def launch_sums(rows, plan, input, target, weight, ignore_index, label_smoothing, loss, lse, block_losses, partials):
    """The pass over the logits: what rows come to or, where partials [rows, chunks] are given, the sums of chunks."""
    machine, library = machine_of(input), build("cross_entropy", SCALAR=input.dtype)
    args = (input, *by_kind(target), weight, loss, lse, block_losses, partials)
    layout = (rows.inner, rows.classes, *rows.strides, *rows.target_strides, ignore_index, label_smoothing, rows.wide)
    if rows.in_positions:
        args = (*args, *layout, plan.lanes, plan.chunks)
        shared_bytes = plan.block * rows.width * ROW_SUM_BYTES
        machine.launch(library, "cross_entropy_positions_kernel", plan.grid, plan.block, args, shared_bytes)
    else:
        args = (*args, rows.count, *layout, plan.team.size, plan.chunks)
        machine.launch(library, "cross_entropy_rows_kernel", plan.grid, plan.team.block, args)


def new_partials(rows, plan, lse):
    return lse.new_empty(rows.count, plan.chunks, ROW_SUM_BYTES // 4)


def cross_entropy_forward(input, target, weight, ignore_index, reduction, label_smoothing, loss, lse, total_weight):
    machine, library = machine_of(input), build("cross_entropy", SCALAR=input.dtype)
    rows, weight = rows_of(input, target), in_float32(weight)
    row_loss, all_loss = (loss, None) if reduction == "none" else (None, loss)
    block_losses, num_losses = None, 0
    if rows.count > 0:
        plan = (position_plan_for if rows.in_positions else row_plan_for)(rows, machine)
        merge_block = block_for(rows.count * WARP)
        num_losses = plan.blocks if plan.chunks == 1 else ceil_div(rows.count, merge_block // WARP)
        block_losses = lse.new_empty(num_losses, ROW_LOSS_BYTES // 4)
        partials = new_partials(rows, plan, lse) if plan.chunks > 1 else None
        inputs = (input, target, weight, ignore_index, label_smoothing)
        launch_sums(rows, plan, *inputs, row_loss, lse, block_losses, partials)
        if partials is not None:
            args = (input, *by_kind(target), weight, row_loss, lse, block_losses, partials, rows.count, rows.inner)
            args = (*args, rows.classes, *rows.strides, *rows.target_strides, ignore_index, label_smoothing)
            machine.launch(library, "cross_entropy_merge_kernel", num_losses, merge_block, (*args, plan.chunks))
    args = (block_losses, all_loss, total_weight, num_losses, reduction == "mean")
    machine.launch(library, "cross_entropy_reduce_kernel", 1, block_for(num_losses, LARGEST_REDUCE_BLOCK), args)


def sums_of_chunks(rows, input, target, weight, ignore_index, label_smoothing, lse):
    """partials [rows, chunks] for a backward in which no block reads a whole row."""
    machine = machine_of(input)
    plan = (position_plan_for if rows.in_positions else row_plan_for)(rows, machine)
    partials = new_partials(rows, plan, lse)
    launch_sums(rows, plan, input, target, weight, ignore_index, label_smoothing, None, lse, None, partials)
    return partials


def cross_entropy_backward(
    grad_loss,
    input,
    target,
    weight,
    lse,
    total_weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_target_grad,
    grad_input,
    grad_target,
):
    if input.numel() == 0:
        return
    machine, library = machine_of(input), build("cross_entropy_backward", SCALAR=input.dtype)
    grad_target = grad_target if needs_target_grad else None
    rows = rows_of(input, target, [grad for grad in (grad_input, grad_target) if grad is not None])
    weight, lse = in_float32(weight), lse.contiguous()
    # csrc/cuda/cross_entropy_backward.cu says why lse is not enough for these.
    anew = input.dtype == torch.float32 or target.is_floating_point() or (weight is not None and label_smoothing != 0)
    plan = position_plan_for(rows, machine) if rows.in_positions else backward_row_plan_for(rows, machine, anew)
    partials, num_partials = None, 0
    if anew and plan.chunks > 1:
        partials = sums_of_chunks(rows_of(input, target), input, target, weight, ignore_index, label_smoothing, lse)
        num_partials = partials.shape[1]
    grad_loss_strides = row_strides(grad_loss) if reduction == "none" else (0, 0)
    args = (grad_loss, input, *by_kind(target), weight, lse, total_weight if reduction == "mean" else None)
    args = (*args, grad_input, grad_target, partials)
    layout = (rows.inner, rows.classes, *grad_loss_strides, *rows.strides, *rows.target_strides, *rows.grad_strides)
    layout = (*layout, ignore_index, label_smoothing, num_partials, anew, rows.wide)
    if rows.in_positions:
        args = (*args, *layout, plan.lanes, plan.chunks)
        shared_bytes = plan.lanes * rows.width * ROW_GRAD_BYTES + plan.block * rows.width * ROW_SUM_BYTES
        machine.launch(library, "cross_entropy_backward_positions_kernel", plan.grid, plan.block, args, shared_bytes)
    else:
        kept, slot_bytes = kept_classes_for(rows, plan, machine)
        args = (*args, rows.count, *layout, plan.team.size, plan.chunks, kept, slot_bytes)
        shared_bytes = slot_bytes * plan.team.rows
        machine.launch(library, "cross_entropy_backward_rows_kernel", plan.grid, plan.team.block, args, shared_bytes)
