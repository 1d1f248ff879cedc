"""One layer and direction of a simple recurrent network: gates_input is [length, batch, hidden], weight_hh [hidden,
hidden], h0 [batch, hidden], lengths [batch] or None."""

from .array_module import array_module
from .recurrent import active, times


def rnn_forward(gates_input, weight_hh, bias_hh, h0, lengths, reverse, nonlinearity):
    """(output [length, batch, hidden], h_n as h0); nonlinearity is "tanh" or "relu"."""
    xp = array_module(gates_input)
    length = gates_input.shape[0]
    h, output = h0, xp.zeros((length, *h0.shape))
    for time in times(length, reverse):
        z = gates_input[time] + h @ weight_hh.T + (0 if bias_hh is None else bias_hh)
        goes_on = active(lengths, time, h0)
        h = xp.where(goes_on, xp.tanh(z) if nonlinearity == "tanh" else xp.where(z <= 0, 0, z), h)
        output[time] = xp.where(goes_on, h, 0)
    return output, h


def rnn_backward(grad_output, grad_h_n, output, weight_hh, lengths, reverse, nonlinearity):
    """(grad_gates [length, batch, hidden], grad_h0 [batch, hidden]); grad_gates is that of gates_input."""
    xp = array_module(grad_output)
    length = output.shape[0]
    grad_h, grad_gates = grad_h_n, xp.zeros(output.shape)
    for time in times(length, not reverse):
        slope = 1 - output[time] ** 2 if nonlinearity == "tanh" else output[time] > 0
        goes_on = active(lengths, time, grad_h)
        grad_gates[time] = xp.where(goes_on, (grad_h + grad_output[time]) * slope, 0)
        grad_h = xp.where(goes_on, grad_gates[time] @ weight_hh, grad_h)
    return grad_gates, grad_h
