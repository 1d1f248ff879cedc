"""What lstm, gru and rnn share: their checks, what the state was before each time, and layers on top of one another."""

import torch
import torch.nn.functional as F

from . import dispatch
from .norm_arguments import FLOATING
from .ops.linear_act import apply_linear, linear_act_backward
from .registration import are_plain, autocast_enabled, no_modes


def check_layer(op, num_gates, gates_input, weight_hh, bias_hh, states, lengths):
    """Raises where the arguments of one layer do not go together.

    Args:
        states: {name: tensor} of the initial states.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, or lengths is not int64.
        ValueError: shapes or devices do not go together, or there is no time step.
    """
    if weight_hh.ndim != 2 or weight_hh.shape[0] != num_gates * weight_hh.shape[1]:
        many = f"{num_gates} * hidden" if num_gates > 1 else "hidden"
        raise ValueError(f"{op}: weight_hh must be [{many}, hidden], got shape {tuple(weight_hh.shape)}")
    if gates_input.ndim != 3 or gates_input.shape[2] != weight_hh.shape[0]:
        raise ValueError(
            f"{op}: gates_input must be [length, batch, {weight_hh.shape[0]}], got shape {tuple(gates_input.shape)}"
        )
    if gates_input.shape[0] == 0:
        raise ValueError(f"{op}: expected sequence length to be larger than 0")
    shapes = {"bias_hh": weight_hh.shape[:1]}
    shapes |= dict.fromkeys(states, (gates_input.shape[1], weight_hh.shape[1]))
    if gates_input.dtype not in FLOATING:
        raise TypeError(f"{op}: gates_input must be floating, got {gates_input.dtype}")
    for name, tensor in {"weight_hh": weight_hh, "bias_hh": bias_hh, **states}.items():
        if tensor is None:
            continue
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name]):
            raise ValueError(f"{op}: {name} must have shape {tuple(shapes[name])}, got {tuple(tensor.shape)}")
        _check_same(op, gates_input, tensor, name)
    if lengths is not None:
        if lengths.dtype != torch.int64:
            raise TypeError(f"{op}: lengths must be int64, got {lengths.dtype}")
        if tuple(lengths.shape) != (gates_input.shape[1],):
            raise ValueError(f"{op}: lengths must have shape {(gates_input.shape[1],)}, got {tuple(lengths.shape)}")
        if lengths.device != gates_input.device:
            raise ValueError(f"{op}: lengths is on {lengths.device}, gates_input on {gates_input.device}")


def _check_same(op, gates_input, tensor, name):
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be floating, got {tensor.dtype}")
    if tensor.device != gates_input.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, gates_input on {gates_input.device}")
    casts_both = autocast_enabled(tensor.device.type) and torch.float64 not in (tensor.dtype, gates_input.dtype)
    if tensor.dtype != gates_input.dtype and not casts_both:
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}, gates_input has {gates_input.dtype}")


def zero_state(gates_input, weight_hh):
    """[batch, hidden] of zeros."""
    return gates_input.new_zeros(gates_input.shape[1], weight_hh.shape[1])


def wants_gradient(*tensors):
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


# ---- for the compositions of PyTorch's operators ---------------------------------------------------------------------


def times(length, reverse):
    """The times of a sequence in the order of processing."""
    return range(length - 1, -1, -1) if reverse else range(length)


def freeze(lengths, time, new, old):
    """`new` for the sequences that reach `time`, `old` for the others."""
    return new if lengths is None else torch.where((time < lengths)[:, None], new, old)


def state_before(states, first, lengths, reverse):
    """[length, batch, hidden]: the state that each time started from, given the states after each time.

    What it holds beyond a sequence's end is of no consequence.
    """
    if not reverse:
        return torch.cat([first[None], states[:-1]])
    before = torch.cat([states[1:], first[None]])
    if lengths is None:
        return before
    last = torch.arange(1, states.shape[0] + 1, device=lengths.device)[:, None] == lengths
    return torch.where(last[:, :, None], first, before)


# ---- the gradient ----------------------------------------------------------------------------------------------------


def or_zeros(grad, like):
    """`grad`, or zeros of its shape that take no memory."""
    return like.new_zeros(()).expand(like.shape) if grad is None else grad


def hidden_weight_gradients(grad_gates, output, h0, weight_hh, lengths, reverse, needs_weight, needs_bias):
    """(grad_weight_hh, grad_bias_hh): over all times in one product; None where not needed."""
    if not (needs_weight or needs_bias):
        return None, None
    before = state_before(output, h0, lengths, reverse).flatten(0, 1)
    empty = before.new_empty(0)
    _, grad_weight, grad_bias = linear_act_backward(
        grad_gates.flatten(0, 1), before, weight_hh, empty, "none", False, needs_weight, needs_bias
    )
    return grad_weight if needs_weight else None, grad_bias if needs_bias else None


# ---- layers ----------------------------------------------------------------------------------------------------------

CUDNN_REASON = "cuDNN takes whole sequences in one call; one launch a time step has not been measured against it"
ONEDNN_REASON = "PyTorch's bfloat16 LSTM measured 1.1x to 1.7x faster on CPUs from 8 sequences on"


def _leaves_to_torch(op, input, states, params, batch_first):
    """True where PyTorch's own function should run: eagerly, on `auto`."""
    reason = None
    if input.is_cuda:
        reason = CUDNN_REASON
    elif op == "lstm" and input.dtype == torch.bfloat16 and input.is_cpu and input.shape[0 if batch_first else 1] >= 8:
        reason = ONEDNN_REASON
    if reason is None or not (no_modes() and are_plain([input, *states, *params])):
        return False
    return dispatch.leave_to_torch(op, input.device.type, reason)


def run_layers(
    op,
    function,
    layer,
    input,
    states,
    params,
    has_biases,
    num_layers,
    dropout,
    train,
    bidirectional,
    batch_first,
    lengths,
):
    """Layers on top of one another, in one direction or both, as torch.lstm, torch.gru and torch.rnn_tanh.

    Args:
        op: the name that errors carry.
        function: PyTorch's own, which runs in eager mode where it is the faster one.
        layer: (gates_input, weight_hh, bias_hh, *states, lengths, reverse) -> (output, *final states).
        input: [length, batch, features], or with batch_first [batch, length, features].
        states: the initial states, each [num_layers * directions, batch, hidden].
        params: weight_ih, weight_hh and with has_biases bias_ih, bias_hh of each layer and direction in turn.
        lengths: int64 [batch], or None.

    Returns:
        (output [length, batch, directions * hidden] in input's order of dimensions, *final states as `states`).

    Raises:
        ValueError: there are not as many params or states as layers and directions ask for.
    """
    directions, per_layer = 1 + bool(bidirectional), 4 if has_biases else 2
    count = num_layers * directions
    if len(params) != per_layer * count:
        raise ValueError(f"{op}: expected {per_layer * count} params, got {len(params)}")
    for state in states:
        if state.ndim != 3 or state.shape[0] != count:
            raise ValueError(f"{op}: initial states must be [{count}, batch, hidden], got shape {tuple(state.shape)}")
    arguments = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    if lengths is None and _leaves_to_torch(op, input, states, params, batch_first):
        return function(input, states if len(states) > 1 else states[0], *arguments)
    finals, x = [], input
    for index in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = index * directions + direction
            weight_ih, weight_hh, *biases = params[place * per_layer : (place + 1) * per_layer]
            bias_ih, bias_hh = biases or (None, None)
            gates_input = apply_linear(x, weight_ih, bias_ih, "none", op)
            if batch_first and index == 0:
                gates_input = gates_input.transpose(0, 1)
            output, *final = layer(
                gates_input, weight_hh, bias_hh, *(state[place] for state in states), lengths, direction == 1
            )
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and train and index < num_layers - 1:
            x = F.dropout(x, dropout)
    return (x.transpose(0, 1) if batch_first else x), *(torch.stack(final) for final in zip(*finals, strict=True))
