"""One layer and direction of an LSTM: gates_input is [length, batch, 4 * hidden], weight_hh [4 * hidden, hidden], h0
and c0 [batch, hidden], lengths [batch] or None; the gates stand in the order input, forget, cell, output."""

from .array_module import array_module
from .recurrent import active, sigmoid, times


def lstm_forward(gates_input, weight_hh, bias_hh, h0, c0, lengths, reverse, save_gates):
    """(output [length, batch, hidden], h_n and c_n as h0, gates as gates_input, cells as output)."""
    xp = array_module(gates_input)
    length = gates_input.shape[0]
    h, c = h0, c0
    output, gates, cells = (xp.zeros((length, *shape)) for shape in (h0.shape, gates_input.shape[1:], h0.shape))
    for time in times(length, reverse):
        z = gates_input[time] + h @ weight_hh.T + (0 if bias_hh is None else bias_hh)
        i, f, g, o = xp.split(z, 4, 1)
        i, f, g, o = sigmoid(i), sigmoid(f), xp.tanh(g), sigmoid(o)
        goes_on = active(lengths, time, h0)
        c = xp.where(goes_on, f * c + i * g, c)
        h = xp.where(goes_on, o * xp.tanh(c), h)
        output[time] = xp.where(goes_on, h, 0)
        gates[time] = xp.where(goes_on, xp.concatenate([i, f, g, o], 1), 0)
        cells[time] = c
    if not save_gates:
        gates = cells = xp.zeros(0)
    return output, h, c, gates, cells


def lstm_backward(grad_output, grad_h_n, grad_c_n, gates, cells, weight_hh, c0, lengths, reverse):
    """(grad_gates [length, batch, 4 * hidden], grad_h0, grad_c0 [batch, hidden]); grad_gates is that of gates_input."""
    xp = array_module(grad_output)
    length = gates.shape[0]
    grad_h, grad_c = grad_h_n, grad_c_n
    grad_gates = xp.zeros(gates.shape)
    for time in times(length, not reverse):
        i, f, g, o = xp.split(gates[time], 4, 1)
        c = cells[time]
        goes_on = active(lengths, time, c)
        before = time + 1 if reverse else time - 1
        # Beyond a sequence's end `cells` holds the initial state, in the reverse direction.
        c_before = cells[before] if 0 <= before < length else c0
        grad = grad_h + grad_output[time]
        grad_cell = grad_c + grad * o * (1 - xp.tanh(c) ** 2)
        step = xp.concatenate(
            [
                grad_cell * g * i * (1 - i),
                grad_cell * c_before * f * (1 - f),
                grad_cell * i * (1 - g**2),
                grad * xp.tanh(c) * o * (1 - o),
            ],
            1,
        )
        grad_gates[time] = xp.where(goes_on, step, 0)
        grad_h = xp.where(goes_on, step @ weight_hh, grad_h)
        grad_c = xp.where(goes_on, grad_cell * f, grad_c)
    return grad_gates, grad_h, grad_c
