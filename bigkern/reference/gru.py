"""One layer and direction of a GRU: gates_input is [length, batch, 3 * hidden], weight_hh [3 * hidden, hidden], h0
[batch, hidden], lengths [batch] or None; the gates stand in the order reset, update, candidate."""

from .array_module import array_module
from .recurrent import active, sigmoid, times


def gru_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, save_gates):
    """(output [length, batch, hidden], h_n as h0, gates [length, batch, 4 * hidden]).

    gates: reset, update, candidate, and the hidden state's share of the candidate before reset.
    """
    xp = array_module(gates_input)
    length, batch, hidden = gates_input.shape[0], *h0.shape
    h = h0
    output, gates = xp.zeros((length, batch, hidden)), xp.zeros((length, batch, 4 * hidden))
    for time in times(length, reverse):
        input_r, input_z, input_n = xp.split(gates_input[time], 3, 1)
        hidden_r, hidden_z, hidden_n = xp.split(h @ weight_hh.T + (0 if bias_hh is None else bias_hh), 3, 1)
        r, z = sigmoid(input_r + hidden_r), sigmoid(input_z + hidden_z)
        n = xp.tanh(input_n + r * hidden_n)
        goes_on = active(lengths, time, h0)
        h = xp.where(goes_on, (1 - z) * n + z * h, h)
        output[time] = xp.where(goes_on, h, 0)
        gates[time] = xp.where(goes_on, xp.concatenate([r, z, n, hidden_n], 1), 0)
    return output, h, gates if save_gates else xp.zeros(0)


def gru_backward(grad_output, grad_h_n, gates, output, weight_hh, h0, lengths, reverse):
    """(grad_gates_input, grad_gates_hidden [length, batch, 3 * hidden], grad_h0 [batch, hidden]).

    grad_gates_hidden is the gradient of h_before @ weight_hh.T + bias_hh.
    """
    xp = array_module(grad_output)
    length, batch, hidden = output.shape
    grad_h = grad_h_n
    grad_gates_input, grad_gates_hidden = xp.zeros((2, length, batch, 3 * hidden))
    for time in times(length, not reverse):
        r, z, n, hidden_n = xp.split(gates[time], 4, 1)
        goes_on = active(lengths, time, h0)
        before = time + 1 if reverse else time - 1
        has_before = active(lengths, before, h0) if 0 <= before < length else xp.full((batch, 1), False)
        h_before = xp.where(has_before, output[before % length], h0)
        grad = grad_h + grad_output[time]
        grad_n = grad * (1 - z) * (1 - n**2)
        grad_z = grad * (h_before - n) * z * (1 - z)
        grad_r = grad_n * hidden_n * r * (1 - r)
        grad_gates_input[time] = xp.where(goes_on, xp.concatenate([grad_r, grad_z, grad_n], 1), 0)
        grad_gates_hidden[time] = xp.where(goes_on, xp.concatenate([grad_r, grad_z, grad_n * r], 1), 0)
        grad_h = xp.where(goes_on, grad * z + grad_gates_hidden[time] @ weight_hh, grad_h)
    return grad_gates_input, grad_gates_hidden, grad_h
