"""One layer and direction of an LSTM on GPUs, one launch a time step; the product is in recurrent.py."""

import torch
import triton
import triton.language as tl

from .common import tanh
from .recurrent import hidden_sum, launch_backward, launch_forward, load_units, reaches, state_gradient, tile_places


@triton.jit(do_not_specialize=["time"])
def lstm_forward_kernel(
    gates_input_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    next_state_ptr,
    lengths_ptr,
    output_ptr,
    cell_state_ptr,
    gates_ptr,
    cells_ptr,
    time,
    batch,
    hidden,
    input_time_stride,
    input_row_stride,
    input_unit_stride,
    weight_row_stride,
    weight_col_stride,
    bias_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One time of some sequences and units: all four gates, the cell's state and the output."""
    rows, units, mask, places = tile_places(batch, hidden, BLOCK_B, BLOCK_H)
    active = reaches(lengths_ptr, rows, time, batch) & mask
    start = tl.full((), 0, tl.int64) + time

    for gate in tl.static_range(4):
        z = hidden_sum(
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
            gate,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
            UPCAST,
        )
        columns = units + gate * hidden
        z += load_units(
            gates_input_ptr, time, rows, columns, mask, input_time_stride, input_row_stride, input_unit_stride
        )
        value = tanh(z) if gate == 2 else tl.sigmoid(z)
        value = tl.where(active, value, 0.0)
        if gates_ptr is not None:
            saved = (start * batch + rows[:, None]) * 4 * hidden + columns[None, :]
            tl.store(gates_ptr + saved, value, mask=mask)
        if gate == 0:
            input_gate = value
        elif gate == 1:
            forget_gate = value
        elif gate == 2:
            candidate = value
        else:
            output_gate = value

    cell = tl.load(cell_state_ptr + places, mask=mask, other=0)
    cell = tl.where(active, forget_gate * cell + input_gate * candidate, cell)
    output = tl.where(active, output_gate * tanh(cell), 0.0).to(output_ptr.dtype.element_ty)
    state = tl.where(active, output, tl.load(state_ptr + places, mask=mask, other=0))

    tl.store(cell_state_ptr + places, cell, mask=mask)
    tl.store(next_state_ptr + places, state, mask=mask)
    tl.store(output_ptr + start * batch * hidden + places, output, mask=mask)
    if cells_ptr is not None:
        tl.store(cells_ptr + start * batch * hidden + places, cell, mask=mask)


@triton.jit(do_not_specialize=["time", "time_after"])
def lstm_backward_kernel(
    carry_ptr,
    grad_gates_ptr,
    weight_ptr,
    grad_output_ptr,
    lengths_ptr,
    grad_cell_ptr,
    gates_ptr,
    cells_ptr,
    c0_ptr,
    time,
    time_after,
    length,
    batch,
    hidden,
    depth,
    weight_row_stride,
    weight_col_stride,
    grad_output_time_stride,
    grad_output_row_stride,
    grad_output_unit_stride,
    REVERSE: tl.constexpr,
    HAS_AFTER: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The gates' gradients at one time of some sequences and units, and what goes on to the time before."""
    rows, units, mask, places = tile_places(batch, hidden, BLOCK_B, BLOCK_H)
    active = reaches(lengths_ptr, rows, time, batch) & mask
    start = tl.full((), 0, tl.int64) + time
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
        HAS_AFTER,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        UPCAST,
    )
    grad_hidden = grad + load_units(
        grad_output_ptr,
        time,
        rows,
        units,
        active,
        grad_output_time_stride,
        grad_output_row_stride,
        grad_output_unit_stride,
    )
    saved = (start * batch + rows[:, None]) * depth + units[None, :]
    input_gate = tl.load(gates_ptr + saved, mask=mask, other=0).to(tl.float32)
    forget_gate = tl.load(gates_ptr + saved + hidden, mask=mask, other=0).to(tl.float32)
    candidate = tl.load(gates_ptr + saved + 2 * hidden, mask=mask, other=0).to(tl.float32)
    output_gate = tl.load(gates_ptr + saved + 3 * hidden, mask=mask, other=0).to(tl.float32)
    squashed = tanh(tl.load(cells_ptr + start * batch * hidden + places, mask=mask, other=0))
    # Where a sequence has not begun, `cells` holds its initial state too.
    before = start + 1 if REVERSE else start - 1
    if (time == length - 1) if REVERSE else (time == 0):
        cell_before = tl.load(c0_ptr + places, mask=mask, other=0)
    else:
        cell_before = tl.load(cells_ptr + before * batch * hidden + places, mask=mask, other=0)

    grad_cell = tl.load(grad_cell_ptr + places, mask=mask, other=0)
    grad_inner = grad_cell + grad_hidden * output_gate * (1 - squashed * squashed)
    grad_input_gate = grad_inner * candidate * input_gate * (1 - input_gate)
    grad_forget_gate = grad_inner * cell_before * forget_gate * (1 - forget_gate)
    grad_candidate = grad_inner * input_gate * (1 - candidate * candidate)
    grad_output_gate = grad_hidden * squashed * output_gate * (1 - output_gate)

    tl.store(grad_gates_ptr + saved, tl.where(active, grad_input_gate, 0.0), mask=mask)
    tl.store(grad_gates_ptr + saved + hidden, tl.where(active, grad_forget_gate, 0.0), mask=mask)
    tl.store(grad_gates_ptr + saved + 2 * hidden, tl.where(active, grad_candidate, 0.0), mask=mask)
    tl.store(grad_gates_ptr + saved + 3 * hidden, tl.where(active, grad_output_gate, 0.0), mask=mask)
    tl.store(carry_ptr + places, tl.where(active, 0.0, grad), mask=mask)
    tl.store(grad_cell_ptr + places, tl.where(active, grad_inner * forget_gate, grad_cell), mask=mask)


def lstm_forward(
    gates_input,
    weight_hh,
    bias_hh,
    h0,
    c0,
    lengths,
    reverse,
    save_gates,
    output,
    h_n,
    c_n,
    gates,
    cells,
):
    cell_state = c0.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    saved = (gates, cells) if save_gates else (None, None)
    inputs = (gates_input, weight_hh, bias_hh, h0, lengths, reverse)
    launch_forward(lstm_forward_kernel, 4, *inputs, output, h_n, cell_state, *saved)
    c_n.copy_(cell_state)


def lstm_backward(
    grad_output,
    grad_h_n,
    grad_c_n,
    gates,
    cells,
    weight_hh,
    c0,
    lengths,
    reverse,
    grad_gates,
    grad_h0,
    grad_c0,
):
    grad_cell = grad_c_n.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    c0 = c0.to(torch.float32).contiguous()
    inputs = (grad_output, grad_h_n, weight_hh, lengths, reverse)
    launch_backward(
        lstm_backward_kernel, *inputs, grad_gates, grad_h0, grad_cell, gates.contiguous(), cells.contiguous(), c0
    )
    grad_c0.copy_(grad_cell)
