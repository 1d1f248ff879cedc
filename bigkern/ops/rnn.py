"""rnn: one layer and direction of a simple recurrent network over whole sequences.

    h = act(gates_input + h_before @ weight_hh.T + bias_hh)                 act: tanh(z) or relu, max(z, 0)

As in lstm, the input's product and the gradients of both weights are taken for all times at once, kernels hold the time
loop, sum in float32 (float64 for float64) and round h to the dtype at each step. The gradient needs only the output.
Source: Elman, "Finding Structure in Time" (1990).
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import statistics_dtype, triton_supports
from ..recurrent import check_layer, freeze, hidden_weight_gradients, or_zeros, times, zero_state
from ..registration import Kernel, gradients_through

NUM_GATES = 1
NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}


def rnn(gates_input, weight_hh, bias_hh=None, h0=None, lengths=None, reverse=False, nonlinearity="tanh"):
    """One layer and direction of an RNN; `bigkern.nn.RNN` and `bigkern.functional.rnn_tanh`, rnn_relu stack them.

    Args:
        gates_input: floating [length, batch, hidden]: x @ weight_ih.T + bias_ih.
        weight_hh: [hidden, hidden], of gates_input's dtype.
        bias_hh: [hidden] or None.
        h0: [batch, hidden], the initial state; None: zeros.
        lengths: int64 [batch]: from its length on a sequence's state stays as it is and its output is 0, in either
            direction, as with packed sequences. None: all sequences are as long as gates_input.
        reverse: from the last time to the first.
        nonlinearity: "tanh" or "relu".

    Returns:
        (output [length, batch, hidden], h_n [batch, hidden]) of gates_input's dtype. Differentiable any number of
        times; second derivatives go through PyTorch's operators.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, or lengths is not int64.
        ValueError: shapes or devices do not go together, there is no time step, or the nonlinearity is neither.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"rnn: unknown nonlinearity {nonlinearity!r}; one of {', '.join(NONLINEARITIES)}")
    check_layer("rnn", NUM_GATES, gates_input, weight_hh, bias_hh, {"h0": h0}, lengths)
    h0 = zero_state(gates_input, weight_hh) if h0 is None else h0
    return rnn_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, nonlinearity)


# ---- rnn_backward ----------------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, grad_h_n, output, weight_hh, lengths, reverse, nonlinearity):
    return output.new_empty(output.shape), output.new_empty(output.shape[1:])


def _backward_torch(grad_output, grad_h_n, output, weight_hh, lengths, reverse, nonlinearity):
    dtype, wide = output.dtype, statistics_dtype(output.dtype)
    weight, grad_h, steps = weight_hh.to(wide), grad_h_n.to(wide), [None] * output.shape[0]
    for time in times(output.shape[0], not reverse):
        h = output[time].to(wide)
        slope = 1 - h * h if nonlinearity == "tanh" else (h > 0).to(wide)
        step = (grad_h + grad_output[time].to(wide)) * slope
        steps[time] = freeze(lengths, time, step, torch.zeros_like(step))
        grad_h = freeze(lengths, time, step @ weight, grad_h)
    return torch.stack(steps).to(dtype), grad_h.to(dtype)


rnn_backward = Kernel(
    "rnn_backward(Tensor grad_output, Tensor grad_h_n, Tensor output, Tensor weight_hh, Tensor? lengths, "
    "bool reverse, str nonlinearity) -> (Tensor grad_gates, Tensor grad_h0)",
    module="rnn",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- rnn_forward -----------------------------------------------------------------------------------------------------


def _allocate_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, nonlinearity):
    return gates_input.new_empty(gates_input.shape), h0.new_empty(h0.shape)


def _forward_torch(gates_input, weight_hh, bias_hh, h0, lengths, reverse, nonlinearity):
    dtype, wide = gates_input.dtype, statistics_dtype(gates_input.dtype)
    weight, bias = weight_hh.to(wide), None if bias_hh is None else bias_hh.to(wide)
    h, outputs = h0.to(wide), [None] * gates_input.shape[0]
    for time in times(gates_input.shape[0], reverse):
        z = gates_input[time].to(wide) + F.linear(h, weight, bias)
        output = NONLINEARITIES[nonlinearity](z).to(dtype).to(wide)
        h = freeze(lengths, time, output, h)
        outputs[time] = freeze(lengths, time, output, torch.zeros_like(output))
    return torch.stack(outputs).to(dtype), h.to(dtype)


def _setup_forward(ctx, inputs, outputs):
    *tensors, ctx.reverse, ctx.nonlinearity = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, outputs[0])


def _backward_forward(ctx, grad_output, grad_h_n):
    *inputs, output = ctx.saved_tensors
    _, weight_hh, _, h0, lengths = inputs
    options = (ctx.reverse, ctx.nonlinearity)
    if torch.is_grad_enabled():  # the gradient will be differentiated
        return gradients_through(_forward_torch, [*inputs, *options], ctx.needs_input_grad, (grad_output, grad_h_n))
    grads = or_zeros(grad_output, output), or_zeros(grad_h_n, h0)
    grad_gates, grad_h0 = rnn_backward(*grads, output, weight_hh, lengths, *options)
    weight_grads = hidden_weight_gradients(
        grad_gates, output, h0, weight_hh, lengths, ctx.reverse, *ctx.needs_input_grad[1:3]
    )
    return grad_gates, *weight_grads, grad_h0, None, None, None


rnn_forward = Kernel(
    "rnn_forward(Tensor gates_input, Tensor weight_hh, Tensor? bias_hh, Tensor h0, Tensor? lengths, bool reverse, "
    "str nonlinearity) -> (Tensor output, Tensor h_n)",
    module="rnn",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda gates_input, *_: triton_supports(gates_input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast="lower_precision",
)
