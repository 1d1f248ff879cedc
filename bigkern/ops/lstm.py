"""lstm: one layer and direction of a long short-term memory over whole sequences, from the input's share of the gates.

    i, f, g, o = gates_input + h_before @ weight_hh.T + bias_hh
    c = sigmoid(f) * c_before + sigmoid(i) * tanh(g)                h = sigmoid(o) * tanh(c)

The input's product, gates_input = x @ weight_ih.T + bias_ih, depends on no state and is taken for all times at once
(`bigkern.linear_act`); so are the gradients of both weights. Kernels hold the time loop: they sum and keep c in float32
(float64 for float64), and round h to the dtype at each step. The gradient reads the gates that the forward kept.
Source: Hochreiter, Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers et al. (2000).
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import statistics_dtype, triton_supports
from ..recurrent import (
    check_layer,
    freeze,
    hidden_weight_gradients,
    or_zeros,
    state_before,
    times,
    wants_gradient,
    zero_state,
)
from ..registration import Kernel, gradients_through

NUM_GATES = 4


def lstm(gates_input, weight_hh, bias_hh=None, h0=None, c0=None, lengths=None, reverse=False):
    """One layer and direction of an LSTM; `bigkern.nn.LSTM` and `bigkern.functional.lstm` stack them.

    Args:
        gates_input: floating [length, batch, 4 * hidden]: x @ weight_ih.T + bias_ih, in PyTorch's order of gates.
        weight_hh: [4 * hidden, hidden], of gates_input's dtype.
        bias_hh: [4 * hidden] or None.
        h0, c0: [batch, hidden], the initial states; None: zeros.
        lengths: int64 [batch]: from its length on a sequence's states stay as they are and its output is 0, in either
            direction, as with packed sequences. None: all sequences are as long as gates_input.
        reverse: from the last time to the first.

    Returns:
        (output [length, batch, hidden], h_n [batch, hidden], c_n [batch, hidden]) of gates_input's dtype.
        Differentiable any number of times; second derivatives go through PyTorch's operators.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, or lengths is not int64.
        ValueError: shapes or devices do not go together, or there is no time step.
    """
    states = {"h0": h0, "c0": c0}
    check_layer("lstm", NUM_GATES, gates_input, weight_hh, bias_hh, states, lengths)
    h0, c0 = (zero_state(gates_input, weight_hh) if state is None else state for state in (h0, c0))
    save_gates = wants_gradient(gates_input, weight_hh, bias_hh, h0, c0)
    return lstm_forward(gates_input, weight_hh, bias_hh, h0, c0, lengths, reverse, save_gates)[:3]


# ---- lstm_backward ---------------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, grad_h_n, grad_c_n, gates, cells, weight_hh, c0, lengths, reverse):
    return gates.new_empty(gates.shape), c0.new_empty(c0.shape), c0.new_empty(c0.shape)


def _backward_torch(grad_output, grad_h_n, grad_c_n, gates, cells, weight_hh, c0, lengths, reverse):
    dtype, wide = gates.dtype, cells.dtype
    weight, before = weight_hh.to(wide), state_before(cells, c0.to(wide), lengths, reverse)
    grad_h, grad_c = grad_h_n.to(wide), grad_c_n.to(wide)
    grad_gates = [None] * gates.shape[0]
    for time in times(gates.shape[0], not reverse):
        i, f, g, o = gates[time].to(wide).chunk(NUM_GATES, 1)
        squashed = cells[time].tanh()
        grad = grad_h + grad_output[time].to(wide)
        grad_cell = grad_c + grad * o * (1 - squashed * squashed)
        step = torch.cat(
            [
                grad_cell * g * i * (1 - i),
                grad_cell * before[time] * f * (1 - f),
                grad_cell * i * (1 - g * g),
                grad * squashed * o * (1 - o),
            ],
            1,
        )
        grad_gates[time] = freeze(lengths, time, step, torch.zeros_like(step))
        grad_h = freeze(lengths, time, step @ weight, grad_h)
        grad_c = freeze(lengths, time, grad_cell * f, grad_c)
    return torch.stack(grad_gates).to(dtype), grad_h.to(dtype), grad_c.to(dtype)


lstm_backward = Kernel(
    "lstm_backward(Tensor grad_output, Tensor grad_h_n, Tensor grad_c_n, Tensor gates, Tensor cells, "
    "Tensor weight_hh, Tensor c0, Tensor? lengths, bool reverse) "
    "-> (Tensor grad_gates, Tensor grad_h0, Tensor grad_c0)",
    module="lstm",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- lstm_forward ----------------------------------------------------------------------------------------------------


def _allocate_forward(gates_input, weight_hh, bias_hh, h0, c0, lengths, reverse, save_gates):
    length, batch = gates_input.shape[:2]
    shape = (length, batch, weight_hh.shape[1])
    return (
        gates_input.new_empty(shape),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        gates_input.new_empty(gates_input.shape if save_gates else 0),
        gates_input.new_empty(shape if save_gates else 0, dtype=statistics_dtype(gates_input.dtype)),
    )


def _forward_torch(gates_input, weight_hh, bias_hh, h0, c0, lengths, reverse, save_gates):
    dtype, wide = gates_input.dtype, statistics_dtype(gates_input.dtype)
    weight, bias = weight_hh.to(wide), None if bias_hh is None else bias_hh.to(wide)
    h, c = h0.to(wide), c0.to(wide)
    saved = [None] * gates_input.shape[0]
    for time in times(gates_input.shape[0], reverse):
        i, f, g, o = (gates_input[time].to(wide) + F.linear(h, weight, bias)).chunk(NUM_GATES, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = freeze(lengths, time, f * c + i * g, c)
        output = (o * c.tanh()).to(dtype).to(wide)
        h = freeze(lengths, time, output, h)
        gates = torch.cat([i, f, g, o], 1)
        zeros = [torch.zeros_like(x) for x in (output, gates)]
        saved[time] = freeze(lengths, time, output, zeros[0]), freeze(lengths, time, gates, zeros[1]), c
    output, gates, cells = (torch.stack(tensors) for tensors in zip(*saved, strict=True))
    if not save_gates:
        gates, cells = gates.new_empty(0), cells.new_empty(0)
    return output.to(dtype), h.to(dtype), c.to(dtype), gates.to(dtype), cells


def _setup_forward(ctx, inputs, outputs):
    *tensors, ctx.reverse, ctx.save_gates = inputs
    output, _, _, gates, cells = outputs
    ctx.mark_non_differentiable(gates, cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output, gates, cells)


def _backward_forward(ctx, grad_output, grad_h_n, grad_c_n, _grad_gates, _grad_cells):
    *inputs, output, gates, cells = ctx.saved_tensors
    _, weight_hh, _, h0, c0, lengths = inputs
    if torch.is_grad_enabled():  # the gradient will be differentiated
        flags = (ctx.reverse, False)
        grad_outputs = (grad_output, grad_h_n, grad_c_n, None, None)
        return gradients_through(_forward_torch, [*inputs, *flags], ctx.needs_input_grad, grad_outputs)
    if not ctx.save_gates:
        gates, cells = lstm_forward(*inputs, ctx.reverse, True)[3:]
    grads = or_zeros(grad_output, output), or_zeros(grad_h_n, h0), or_zeros(grad_c_n, c0)
    grad_gates, grad_h0, grad_c0 = lstm_backward(*grads, gates, cells, weight_hh, c0, lengths, ctx.reverse)
    weight_grads = hidden_weight_gradients(
        grad_gates, output, h0, weight_hh, lengths, ctx.reverse, *ctx.needs_input_grad[1:3]
    )
    return grad_gates, *weight_grads, grad_h0, grad_c0, None, None, None


lstm_forward = Kernel(
    "lstm_forward(Tensor gates_input, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor c0, Tensor? lengths, "
    "bool reverse, bool save_gates) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)",
    module="lstm",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda gates_input, *_: triton_supports(gates_input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
