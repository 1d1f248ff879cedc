"""gru: one layer and direction of a gated recurrent unit over whole sequences, from the input's share of the gates.

    r, z, n = gates_input, each beside its share s of h_before @ weight_hh.T + bias_hh
    r = sigmoid(r + s_r)    z = sigmoid(z + s_z)    n = tanh(n + r * s_n)               h = (1 - z) * n + z * h_before

As in lstm, the input's product and the gradients of both weights are taken for all times at once, kernels hold the time
loop, sum in float32 (float64 for float64) and round h to the dtype at each step. The gradient reads r, z, n and s_n,
which the forward kept. Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), with r
applied after the product, as in cuDNN and PyTorch.
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

NUM_GATES = 3
NUM_SAVED = 4


def gru(gates_input, weight_hh, bias_hh=None, h0=None, lengths=None, reverse=False):
    """One layer and direction of a GRU; `bigkern.nn.GRU` and `bigkern.functional.gru` stack them.

    Args:
        gates_input: floating [length, batch, 3 * hidden]: x @ weight_ih.T + bias_ih, in PyTorch's order of gates.
        weight_hh: [3 * hidden, hidden], of gates_input's dtype.
        bias_hh: [3 * hidden] or None.
        h0: [batch, hidden], the initial state; None: zeros.
        lengths: int64 [batch]: from its length on a sequence's state stays as it is and its output is 0, in either
            direction, as with packed sequences. None: all sequences are as long as gates_input.
        reverse: from the last time to the first.

    Returns:
        (output [length, batch, hidden], h_n [batch, hidden]) of gates_input's dtype. Differentiable any number of
        times; second derivatives go through PyTorch's operators.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, or lengths is not int64.
        ValueError: shapes or devices do not go together, or there is no time step.
    """
    check_layer("gru", NUM_GATES, gates_input, weight_hh, bias_hh, {"h0": h0}, lengths)
    h0 = zero_state(gates_input, weight_hh) if h0 is None else h0
    save_gates = wants_gradient(gates_input, weight_hh, bias_hh, h0)
    return gru_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, save_gates)[:2]


# ---- gru_backward ----------------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, grad_h_n, gates, output, weight_hh, h0, lengths, reverse):
    shape = (*output.shape[:2], weight_hh.shape[0])
    return output.new_empty(shape), output.new_empty(shape), h0.new_empty(h0.shape)


def _backward_torch(grad_output, grad_h_n, gates, output, weight_hh, h0, lengths, reverse):
    dtype, wide = output.dtype, statistics_dtype(output.dtype)
    weight, before = weight_hh.to(wide), state_before(output, h0, lengths, reverse).to(wide)
    grad_h, steps = grad_h_n.to(wide), [None] * output.shape[0]
    for time in times(output.shape[0], not reverse):
        r, z, n, hidden_n = gates[time].to(wide).chunk(NUM_SAVED, 1)
        grad = grad_h + grad_output[time].to(wide)
        grad_n = grad * (1 - z) * (1 - n * n)
        grad_z = grad * (before[time] - n) * z * (1 - z)
        grad_r = grad_n * hidden_n * r * (1 - r)
        grad_input, grad_hidden = (torch.cat([grad_r, grad_z, last], 1) for last in (grad_n, grad_n * r))
        zeros = torch.zeros_like(grad_input)
        steps[time] = [freeze(lengths, time, step, zeros) for step in (grad_input, grad_hidden)]
        grad_h = freeze(lengths, time, grad * z + grad_hidden @ weight, grad_h)
    grad_input, grad_hidden = (torch.stack(tensors).to(dtype) for tensors in zip(*steps, strict=True))
    return grad_input, grad_hidden, grad_h.to(dtype)


gru_backward = Kernel(
    "gru_backward(Tensor grad_output, Tensor grad_h_n, Tensor gates, Tensor output, Tensor weight_hh, Tensor h0, "
    "Tensor? lengths, bool reverse) -> (Tensor grad_gates_input, Tensor grad_gates_hidden, Tensor grad_h0)",
    module="gru",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- gru_forward -----------------------------------------------------------------------------------------------------


def _allocate_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, save_gates):
    length, batch, hidden = *gates_input.shape[:2], weight_hh.shape[1]
    return (
        gates_input.new_empty(length, batch, hidden),
        h0.new_empty(h0.shape),
        gates_input.new_empty((length, batch, NUM_SAVED * hidden) if save_gates else 0),
    )


def _forward_torch(gates_input, weight_hh, bias_hh, h0, lengths, reverse, save_gates):
    dtype, wide = gates_input.dtype, statistics_dtype(gates_input.dtype)
    weight, bias = weight_hh.to(wide), None if bias_hh is None else bias_hh.to(wide)
    h, steps = h0.to(wide), [None] * gates_input.shape[0]
    for time in times(gates_input.shape[0], reverse):
        input_r, input_z, input_n = gates_input[time].to(wide).chunk(NUM_GATES, 1)
        hidden_r, hidden_z, hidden_n = F.linear(h, weight, bias).chunk(NUM_GATES, 1)
        r, z = (input_r + hidden_r).sigmoid(), (input_z + hidden_z).sigmoid()
        n = (input_n + r * hidden_n).tanh()
        output = (n + z * (h - n)).to(dtype).to(wide)
        h = freeze(lengths, time, output, h)
        step = (output, torch.cat([r, z, n, hidden_n], 1))
        steps[time] = [freeze(lengths, time, tensor, torch.zeros_like(tensor)) for tensor in step]
    output, gates = (torch.stack(tensors).to(dtype) for tensors in zip(*steps, strict=True))
    return output, h.to(dtype), gates if save_gates else gates.new_empty(0)


def _setup_forward(ctx, inputs, outputs):
    *tensors, ctx.reverse, ctx.save_gates = inputs
    output, _, gates = outputs
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output, gates)


def _backward_forward(ctx, grad_output, grad_h_n, _grad_gates):
    *inputs, output, gates = ctx.saved_tensors
    _, weight_hh, _, h0, lengths = inputs
    if torch.is_grad_enabled():  # the gradient will be differentiated
        arguments = [*inputs, ctx.reverse, False]
        return gradients_through(_forward_torch, arguments, ctx.needs_input_grad, (grad_output, grad_h_n, None))
    if not ctx.save_gates:
        gates = gru_forward(*inputs, ctx.reverse, True)[2]
    grads = or_zeros(grad_output, output), or_zeros(grad_h_n, h0)
    grad_input, grad_hidden, grad_h0 = gru_backward(*grads, gates, output, weight_hh, h0, lengths, ctx.reverse)
    weight_grads = hidden_weight_gradients(
        grad_hidden, output, h0, weight_hh, lengths, ctx.reverse, *ctx.needs_input_grad[1:3]
    )
    return grad_input, *weight_grads, grad_h0, None, None, None


gru_forward = Kernel(
    "gru_forward(Tensor gates_input, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor? lengths, bool reverse, "
    "bool save_gates) -> (Tensor output, Tensor h_n, Tensor gates)",
    module="gru",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda gates_input, *_: triton_supports(gates_input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
