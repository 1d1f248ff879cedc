"""int8 quantization with one scale per group of a tensor [outer, groups, inner], and the way back.

The kernels are in csrc/cuda/quantize.cu: `rows` for groups that a block keeps in shared memory, `chunks` for larger
ones, `columns` where groups, not their elements, lie side by side.
"""

from typing import NamedTuple

from .machine import build, machine_of
from .rows import (
    ACCESS_BYTES,
    IN_FLIGHT,
    STATIC_SHARED_BYTES,
    WARP,
    accesses,
    aligned,
    block_for,
    ceil_div,
    meet,
    power_of_two_from,
    slot_bytes_for,
    team_for,
)

RANGE_BYTES = 12  # csrc/cuda/quantize.cu: Range
LARGEST_TEAM = 1024  # threads
BLOCKS_PER_MULTIPROCESSOR = 8
SMALLEST_SPLIT_ROW = 1024  # accesses


class GroupLayout(NamedTuple):
    """A source and a result [outer, groups, inner] as kernels walk them: strides in elements."""

    outer: int
    groups: int
    inner: int
    source_strides: tuple
    result_strides: tuple

    @property
    def sizes(self):
        return self.outer, self.groups, self.inner

    @property
    def in_columns(self):
        return self.groups > 1 and self.source_strides[1] == 1 and self.source_strides[2] != 1


def group_layout(source, result):
    """Leaves one long `inner` per group where the strides allow it."""
    (outer, groups, inner), strides, result_strides = source.shape, source.stride(), result.stride()
    merges = strides[0] == inner * strides[2] and result_strides[0] == inner * result_strides[2]
    if inner == 1:
        strides, result_strides = strides[::-1], result_strides[::-1]
    if inner == 1 or outer == 1 or merges:
        outer, inner = 1, outer * inner
        # Never used, but 0 is a multiple of everything.
        strides, result_strides = (0, *strides[1:]), (0, *result_strides[1:])
    return GroupLayout(outer, groups, inner, strides, result_strides)


def takes_vectors(layout, floating, other, floating_strides, other_strides):
    """Whether 16-byte accesses of the floating tensor meet aligned ones of int8."""
    width = ACCESS_BYTES // floating.element_size()
    if not layout.in_columns:
        side_by_side = floating_strides[2] == other_strides[2] == 1
        return side_by_side and meet(width, (floating, floating_strides[:2]), (other, other_strides[:2]))
    side_by_side = floating_strides[1] == other_strides[1] == 1 and layout.groups % width == 0
    return side_by_side and aligned(width, (floating, floating_strides[::2]), (other, other_strides[::2]))


def fits_in_rows(layout, element_size, wide, machine):
    """Whether a block keeps a whole group, and there are groups enough to occupy the device."""
    if layout.outer != 1 or layout.in_columns:
        return False
    busy = 2 * layout.groups >= machine.num_multiprocessors
    small = accesses(layout.inner, element_size, wide) <= SMALLEST_SPLIT_ROW
    slots = slot_bytes_for(layout.inner, element_size) * row_team_for(layout, element_size, wide).rows
    return (busy or small) and slots <= machine.shared_memory - STATIC_SHARED_BYTES


def row_team_for(layout, element_size, wide):
    return team_for(layout.groups, accesses(layout.inner, element_size, wide), LARGEST_TEAM)


def piece_for(inner, element_size, wide):
    """(elements of a group that a team handles at once, threads of a team)"""
    width = ACCESS_BYTES // element_size if wide else 1
    team = min(power_of_two_from(ceil_div(accesses(inner, element_size, wide), 2)), WARP)
    return team * width * IN_FLIGHT, team


def num_chunks_for(num_steps, num_blocks, machine):
    """Into how many chunks to cut each group: several blocks per multiprocessor, none without a step of its own."""
    return max(min(num_steps, BLOCKS_PER_MULTIPROCESSOR * machine.num_multiprocessors // num_blocks), 1)


class ColumnPlan(NamedTuple):
    lanes: int  # threads side by side
    block: int
    chunks: int
    grid: int


def column_plan_for(layout, element_size, wide, machine):
    width, rows = ACCESS_BYTES // element_size if wide else 1, layout.outer * layout.inner
    lanes = min(power_of_two_from(ceil_div(layout.groups, width)), WARP)
    tiles = ceil_div(layout.groups, lanes * width)
    block = block_for(ceil_div(rows, IN_FLIGHT) * lanes)
    chunks = num_chunks_for(ceil_div(rows * lanes, block * IN_FLIGHT), tiles, machine)
    return ColumnPlan(lanes, block, chunks, tiles * chunks)


def quantize_rows(layout, input, symmetric, wide, qinput, scale, zero_point):
    team = row_team_for(layout, input.element_size(), wide)
    slot_bytes = slot_bytes_for(layout.inner, input.element_size())
    args = (input, qinput, scale, zero_point, layout.groups, layout.inner, *layout.source_strides[1:])
    machine_of(input).launch(
        build("quantize", SCALAR=input.dtype),
        "quantize_rows_kernel",
        ceil_div(layout.groups, team.rows),
        team.block,
        (*args, *layout.result_strides[1:], symmetric, wide, team.size, slot_bytes),
        shared_bytes=slot_bytes * team.rows,
    )


def launch_scales(layout, machine, library, ranges, symmetric, scale, zero_point):
    block = block_for(layout.groups * WARP)
    args = (ranges, scale, zero_point, layout.groups, ranges.shape[1], symmetric)
    machine.launch(library, "group_scale_kernel", ceil_div(layout.groups, block // WARP), block, args)


def new_ranges(layout, chunks, scale):
    return scale.new_empty(layout.groups, chunks, RANGE_BYTES // 4)


def quantize_chunks(layout, input, symmetric, wide, qinput, scale, zero_point):
    machine, library = machine_of(input), build("quantize", SCALAR=input.dtype)
    outer, groups, inner = layout.sizes
    piece, team = piece_for(inner, input.element_size(), wide)
    pieces = outer * ceil_div(inner, piece)
    block = block_for(pieces * team)
    chunks = num_chunks_for(ceil_div(pieces * team, block), groups, machine)
    ranges = new_ranges(layout, chunks, scale)
    args = (input, ranges, outer, inner, piece, chunks, *layout.source_strides, wide, team)
    machine.launch(library, "group_range_kernel", groups * chunks, block, args)
    launch_scales(layout, machine, library, ranges, symmetric, scale, zero_point)
    args = (input, qinput, scale, zero_point, *layout.sizes, piece, *layout.source_strides, *layout.result_strides)
    grid = ceil_div(groups * pieces * team, block)
    machine.launch(library, "quantize_kernel", grid, block, (*args, symmetric, wide, team))


def quantize_columns(layout, input, symmetric, wide, qinput, scale, zero_point):
    machine, library = machine_of(input), build("quantize", SCALAR=input.dtype)
    plan = column_plan_for(layout, input.element_size(), wide, machine)
    ranges = new_ranges(layout, plan.chunks, scale)
    args = (input, ranges, *layout.sizes, plan.chunks, *layout.source_strides, wide, plan.lanes)
    machine.launch(library, "column_range_kernel", plan.grid, plan.block, args)
    launch_scales(layout, machine, library, ranges, symmetric, scale, zero_point)
    args = (input, qinput, scale, zero_point, *layout.sizes, plan.chunks)
    args = (*args, *layout.source_strides, *layout.result_strides, symmetric, wide, plan.lanes)
    machine.launch(library, "quantize_columns_kernel", plan.grid, plan.block, args)


def quantize_forward(input, symmetric, qinput, scale, zero_point):
    layout = group_layout(input, qinput)
    if layout.groups == 0:
        return
    wide = takes_vectors(layout, input, qinput, layout.source_strides, layout.result_strides)
    if input.numel() == 0:
        layout = layout._replace(outer=1, inner=0)
    if fits_in_rows(layout, input.element_size(), wide, machine_of(input)):
        quantize = quantize_rows
    else:
        quantize = quantize_columns if layout.in_columns else quantize_chunks
    quantize(layout, input, symmetric, wide, qinput, scale, zero_point)


def dequantize_forward(qinput, scale, zero_point, output):
    layout = group_layout(qinput, output)
    if output.numel() == 0:
        return
    machine, library = machine_of(qinput), build("quantize", SCALAR=output.dtype)
    wide = takes_vectors(layout, output, qinput, layout.result_strides, layout.source_strides)
    strides = (*layout.source_strides, *layout.result_strides)
    strides = (*strides, scale.stride(0), 0 if zero_point is None else zero_point.stride(0))
    if layout.in_columns:
        plan = column_plan_for(layout, output.element_size(), wide, machine)
        args = (qinput, scale, zero_point, output, *layout.sizes, plan.chunks, *strides, wide, plan.lanes)
        machine.launch(library, "dequantize_columns_kernel", plan.grid, plan.block, args)
        return
    piece, team = piece_for(layout.inner, output.element_size(), wide)
    threads = layout.outer * layout.groups * ceil_div(layout.inner, piece) * team
    block = block_for(threads)
    args = (qinput, scale, zero_point, output, *layout.sizes, piece, *strides, wide, team)
    machine.launch(library, "dequantize_kernel", ceil_div(threads, block), block, args)
