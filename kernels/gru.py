"""One layer and direction of a GRU on GPUs, one launch a time step; the product is in recurrent.py."""

import triton
import triton.language as tl

from .common import tanh
from .recurrent import hidden_sum, launch_backward, launch_forward, load_units, reaches, state_gradient, tile_places


@triton.jit(do_not_specialize=["time"])
def gru_forward_kernel(
    gates_input_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    next_state_ptr,
    lengths_ptr,
    output_ptr,
    gates_ptr,
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
    """One time of some sequences and units: the three gates and the output."""
    rows, units, mask, places = tile_places(batch, hidden, BLOCK_B, BLOCK_H)
    active = reaches(lengths_ptr, rows, time, batch) & mask
    start = tl.full((), 0, tl.int64) + time

    for gate in tl.static_range(3):
        hidden_share = hidden_sum(
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
        input_share = load_units(
            gates_input_ptr, time, rows, columns, mask, input_time_stride, input_row_stride, input_unit_stride
        )
        if gate == 0:
            value = tl.sigmoid(input_share + hidden_share)
            reset = value
        elif gate == 1:
            value = tl.sigmoid(input_share + hidden_share)
            update = value
        else:
            value = tanh(input_share + reset * hidden_share)
            candidate = value
        if gates_ptr is not None:  # beside the gates, what reset was multiplied with
            saved = (start * batch + rows[:, None]) * 4 * hidden + columns[None, :]
            tl.store(gates_ptr + saved, tl.where(active, value, 0.0), mask=mask)
            if gate == 2:
                tl.store(gates_ptr + saved + hidden, tl.where(active, hidden_share, 0.0), mask=mask)

    before = tl.load(state_ptr + places, mask=mask, other=0)
    after = candidate + update * (before.to(tl.float32) - candidate)
    output = tl.where(active, after, 0.0).to(output_ptr.dtype.element_ty)
    tl.store(next_state_ptr + places, tl.where(active, output, before), mask=mask)
    tl.store(output_ptr + start * batch * hidden + places, output, mask=mask)


@triton.jit(do_not_specialize=["time", "time_after"])
def gru_backward_kernel(
    carry_ptr,
    grad_gates_ptr,
    weight_ptr,
    grad_output_ptr,
    lengths_ptr,
    grad_gates_input_ptr,
    gates_ptr,
    states_ptr,
    h0_ptr,
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
    saved = (start * batch + rows[:, None]) * 4 * hidden + units[None, :]
    reset = tl.load(gates_ptr + saved, mask=mask, other=0).to(tl.float32)
    update = tl.load(gates_ptr + saved + hidden, mask=mask, other=0).to(tl.float32)
    candidate = tl.load(gates_ptr + saved + 2 * hidden, mask=mask, other=0).to(tl.float32)
    hidden_share = tl.load(gates_ptr + saved + 3 * hidden, mask=mask, other=0).to(tl.float32)
    # Beyond its end a sequence's output is 0, and in reverse its state there is the initial one.
    before = start + 1 if REVERSE else start - 1
    befores = before + rows * 0  # [BLOCK_B]
    has_before = mask & ((befores >= 0) & (befores < length))[:, None]
    if REVERSE:
        has_before = has_before & reaches(lengths_ptr, rows, before, batch)
    state_before = tl.load(states_ptr + before * batch * hidden + places, mask=has_before, other=0).to(tl.float32)
    first_state = tl.load(h0_ptr + places, mask=mask, other=0).to(tl.float32)
    state_before = tl.where(has_before, state_before, first_state)

    grad_candidate = grad_hidden * (1 - update) * (1 - candidate * candidate)
    grad_update = grad_hidden * (state_before - candidate) * update * (1 - update)
    grad_reset = grad_candidate * hidden_share * reset * (1 - reset)
    to = (start * batch + rows[:, None]) * depth + units[None, :]
    tl.store(grad_gates_input_ptr + to, tl.where(active, grad_reset, 0.0), mask=mask)
    tl.store(grad_gates_input_ptr + to + hidden, tl.where(active, grad_update, 0.0), mask=mask)
    tl.store(grad_gates_input_ptr + to + 2 * hidden, tl.where(active, grad_candidate, 0.0), mask=mask)
    tl.store(grad_gates_ptr + to, tl.where(active, grad_reset, 0.0), mask=mask)
    tl.store(grad_gates_ptr + to + hidden, tl.where(active, grad_update, 0.0), mask=mask)
    tl.store(grad_gates_ptr + to + 2 * hidden, tl.where(active, grad_candidate * reset, 0.0), mask=mask)
    tl.store(carry_ptr + places, tl.where(active, grad_hidden * update, grad), mask=mask)


def gru_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, save_gates, output, h_n, gates):
    inputs = (gates_input, weight_hh, bias_hh, h0, lengths, reverse)
    launch_forward(gru_forward_kernel, 3, *inputs, output, h_n, gates if save_gates else None)


def gru_backward(
    grad_output,
    grad_h_n,
    gates,
    output,
    weight_hh,
    h0,
    lengths,
    reverse,
    grad_gates_input,
    grad_gates_hidden,
    grad_h0,
):
    inputs = (grad_output, grad_h_n, weight_hh, lengths, reverse)
    saved = (gates, output.contiguous(), h0.contiguous())
    launch_backward(gru_backward_kernel, *inputs, grad_gates_hidden, grad_h0, grad_gates_input, *saved)
