"""What lstm, gru and rnn share on GPUs: one launch a time step, which multiplies the states by the weight and applies
the cell to the sums."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, on_device_of
from .linear_act import multiply_tile


class RecurrentTile(NamedTuple):
    block_b: int
    block_h: int
    block_k: int
    num_warps: int


def recurrent_tile_for(batch, hidden, num_gates):
    """The tile of one step: sequences x hidden units (times the gates), and the depth that is read at a time.

    A step is short and reads the weight once: units are divided finely, so that many programs read it together.
    """
    if batch <= 16:
        return RecurrentTile(16, 16 if num_gates > 1 else 32, 64, 4)
    return RecurrentTile(32, 32, 32, 4)


def grid_for(tile, batch, hidden):
    return (triton.cdiv(batch, tile.block_b), triton.cdiv(hidden, tile.block_h))


def times(length, reverse):
    """The times of a sequence in the order of processing."""
    return range(length - 1, -1, -1) if reverse else range(length)


@triton.jit
def tile_places(batch, hidden, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """(rows [BLOCK_B], units [BLOCK_H], mask, offsets in a [batch, hidden] matrix) of this program."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    return rows, units, mask, rows[:, None] * hidden + units[None, :]


@triton.jit
def reaches(lengths_ptr, rows, time, batch):
    """[BLOCK_B, 1]: which sequences have not ended at `time`."""
    active = rows < batch
    if lengths_ptr is not None:
        active = time < tl.load(lengths_ptr + rows, mask=active, other=0)
    return active[:, None]


@triton.jit
def load_units(ptr, time, rows, units, mask, time_stride, row_stride, unit_stride):
    """[BLOCK_B, BLOCK_H] fp32 of a [length, batch, features] tensor."""
    start = tl.full((), 0, tl.int64) + time
    offsets = start * time_stride + rows[:, None] * row_stride + units[None, :] * unit_stride
    return tl.load(ptr + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def hidden_sum(
    state_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    units,
    batch,
    hidden,
    weight_row_stride,
    weight_col_stride,
    bias_stride,
    GATE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """state @ weight_hh.T + bias_hh for the units of one gate; state is [batch, hidden]."""
    first = tl.full((), GATE, tl.int64) * hidden
    sums = multiply_tile(
        state_ptr,
        weight_ptr + first * weight_row_stride,
        rows,
        units,
        0,
        hidden,
        batch,
        hidden,
        hidden,
        1,
        weight_col_stride,
        weight_row_stride,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        False,
        UPCAST,
        tl.float32,
    )
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + (first + units) * bias_stride, mask=units < hidden, other=0).to(tl.float32)[None, :]
    return sums


@triton.jit
def state_gradient(
    carry_ptr,
    grad_gates_ptr,
    weight_ptr,
    rows,
    units,
    places,
    mask,
    time_after,
    batch,
    hidden,
    depth,
    weight_row_stride,
    weight_col_stride,
    HAS_AFTER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The gradient of the states before `time_after`: carry + grad_gates[time_after] @ weight_hh; depth is their width.

    HAS_AFTER: whether there is such a time.
    """
    grad = tl.load(carry_ptr + places, mask=mask, other=0)
    if HAS_AFTER:
        start = (tl.full((), 0, tl.int64) + time_after) * batch * depth
        grad += multiply_tile(
            grad_gates_ptr + start,
            weight_ptr,
            rows,
            units,
            0,
            depth,
            batch,
            hidden,
            depth,
            1,
            weight_row_stride,
            weight_col_stride,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
            False,
            UPCAST,
            tl.float32,
        )
    return grad


@triton.jit
def first_state_gradient_kernel(
    carry_ptr,
    grad_gates_ptr,
    weight_ptr,
    grad_h0_ptr,
    time_after,
    batch,
    hidden,
    depth,
    weight_row_stride,
    weight_col_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """grad_h0 [batch, hidden], once all times are done."""
    rows, units, mask, places = tile_places(batch, hidden, BLOCK_B, BLOCK_H)
    grad = state_gradient(
        carry_ptr,
        grad_gates_ptr,
        weight_ptr,
        rows,
        units,
        places,
        mask,
        time_after,
        batch,
        hidden,
        depth,
        weight_row_stride,
        weight_col_stride,
        True,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        UPCAST,
    )
    tl.store(grad_h0_ptr + places, grad, mask=mask)


def launch_forward(
    kernel, num_gates, gates_input, weight_hh, bias_hh, h0, lengths, reverse, output, h_n, *tensors, **flags
):
    """Runs `kernel` once a time step; `tensors` are the family's own, after those that all have."""
    (length, batch, _), hidden = gates_input.shape, weight_hh.shape[1]
    if batch == 0 or hidden == 0:
        return
    tile = recurrent_tile_for(batch, hidden, num_gates)
    # States that go from step to step: one is read whole while the other is written.
    states = torch.stack([h0, h0])
    lengths = None if lengths is None else lengths.contiguous()
    with on_device_of(gates_input):
        for step, time in enumerate(times(length, reverse)):
            kernel[grid_for(tile, batch, hidden)](
                gates_input,
                weight_hh,
                bias_hh,
                states[step % 2],
                states[(step + 1) % 2],
                lengths,
                output,
                *tensors,
                time,
                batch,
                hidden,
                *gates_input.stride(),
                *weight_hh.stride(),
                0 if bias_hh is None else bias_hh.stride(0),
                BLOCK_B=tile.block_b,
                BLOCK_H=tile.block_h,
                BLOCK_K=tile.block_k,
                UPCAST=INTERPRET and gates_input.dtype == torch.bfloat16,
                num_warps=tile.num_warps,
                **flags,
                **COMPILE_OPTIONS,
            )
    h_n.copy_(states[length % 2])


def launch_backward(kernel, grad_output, grad_h_n, weight_hh, lengths, reverse, grad_gates, grad_h0, *tensors, **flags):
    """Runs `kernel` once a time step, last time first, then the gradient of h0.

    grad_gates: the gradient of h_before @ weight_hh.T, which goes on to the time before.
    """
    (length, batch, hidden), depth = grad_output.shape, weight_hh.shape[0]
    if batch == 0 or hidden == 0:
        return
    tile = recurrent_tile_for(batch, hidden, 1)
    carry = grad_h_n.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    lengths = None if lengths is None else lengths.contiguous()
    options = {
        "BLOCK_B": tile.block_b,
        "BLOCK_H": tile.block_h,
        "BLOCK_K": tile.block_k,
        "UPCAST": INTERPRET and grad_gates.dtype == torch.bfloat16,
        "num_warps": tile.num_warps,
        **COMPILE_OPTIONS,
    }
    shape = (batch, hidden, depth, *weight_hh.stride())
    after = 0
    with on_device_of(grad_output):
        for step, time in enumerate(times(length, not reverse)):
            kernel[grid_for(tile, batch, hidden)](
                carry,
                grad_gates,
                weight_hh,
                grad_output,
                lengths,
                *tensors,
                time,
                after,
                length,
                *shape,
                *grad_output.stride(),
                REVERSE=reverse,
                HAS_AFTER=step > 0,
                **flags,
                **options,
            )
            after = time
        first_state_gradient_kernel[grid_for(tile, batch, hidden)](
            carry, grad_gates, weight_hh, grad_h0, after, *shape, **options
        )
