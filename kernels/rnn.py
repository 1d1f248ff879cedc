"""One layer and direction of an RNN on GPUs, one launch a time step; the product is in recurrent.py."""

import triton
import triton.language as tl

from .common import apply_activation, apply_activation_backward
from .recurrent import hidden_sum, launch_backward, launch_forward, load_units, reaches, state_gradient, tile_places


@triton.jit(do_not_specialize=["time"])
def rnn_forward_kernel(
    gates_input_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    next_state_ptr,
    lengths_ptr,
    output_ptr,
    time,
    batch,
    hidden,
    input_time_stride,
    input_row_stride,
    input_unit_stride,
    weight_row_stride,
    weight_col_stride,
    bias_stride,
    NONLINEARITY: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One time of some sequences and units."""
    rows, units, mask, places = tile_places(batch, hidden, BLOCK_B, BLOCK_H)
    active = reaches(lengths_ptr, rows, time, batch) & mask
    start = tl.full((), 0, tl.int64) + time
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
        0,
        BLOCK_B,
        BLOCK_H,
        BLOCK_K,
        UPCAST,
    )
    z += load_units(gates_input_ptr, time, rows, units, mask, input_time_stride, input_row_stride, input_unit_stride)
    before = tl.load(state_ptr + places, mask=mask, other=0)
    output = tl.where(active, apply_activation(z, NONLINEARITY), 0.0).to(output_ptr.dtype.element_ty)
    tl.store(next_state_ptr + places, tl.where(active, output, before), mask=mask)
    tl.store(output_ptr + start * batch * hidden + places, output, mask=mask)


@triton.jit(do_not_specialize=["time", "time_after"])
def rnn_backward_kernel(
    carry_ptr,
    grad_gates_ptr,
    weight_ptr,
    grad_output_ptr,
    lengths_ptr,
    states_ptr,
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
    NONLINEARITY: tl.constexpr,
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
    here = start * batch * hidden + places
    state = tl.load(states_ptr + here, mask=mask, other=0).to(tl.float32)
    grad_gate = apply_activation_backward(grad_hidden, state, NONLINEARITY)
    tl.store(grad_gates_ptr + here, tl.where(active, grad_gate, 0.0), mask=mask)
    tl.store(carry_ptr + places, tl.where(active, 0.0, grad), mask=mask)


def rnn_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, nonlinearity, output, h_n):
    inputs = (gates_input, weight_hh, bias_hh, h0, lengths, reverse)
    launch_forward(rnn_forward_kernel, 1, *inputs, output, h_n, NONLINEARITY=nonlinearity)


def rnn_backward(grad_output, grad_h_n, output, weight_hh, lengths, reverse, nonlinearity, grad_gates, grad_h0):
    inputs = (grad_output, grad_h_n, weight_hh, lengths, reverse)
    launch_backward(rnn_backward_kernel, *inputs, grad_gates, grad_h0, output.contiguous(), NONLINEARITY=nonlinearity)
