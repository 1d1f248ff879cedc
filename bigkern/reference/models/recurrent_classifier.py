"""The recurrent classifier of bigkern.models.recurrent_classifier in NumPy, forward and backward."""

from ..array_module import array_module
from ..gru import gru_backward, gru_forward
from ..lstm import lstm_backward, lstm_forward
from ..rnn import rnn_backward, rnn_forward
from .tape import Tape, mean_cross_entropy


def recurrent_loss_and_gradients(parameters, kind, sequences, targets):
    """(loss, logits [batch, classes], gradients by the parameters' names); sequences [batch, length, features]."""
    xp = array_module(sequences)
    batch, length, features = sequences.shape
    tape = Tape(parameters, batch, length)
    names = [f"recurrent.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weight_ih, weight_hh, bias_ih, bias_hh = (parameters[name] for name in names)
    steps = sequences.swapaxes(0, 1)
    gates_input = steps @ weight_ih.T + bias_ih
    zeros = xp.zeros((batch, weight_hh.shape[1]))
    output, back_steps = STEPS[kind](gates_input, weight_hh, bias_hh, zeros)
    logits, back_output = tape.linear(output[-1], "output")

    loss, grad_logits = mean_cross_entropy(logits, targets)
    grad_output = xp.zeros(output.shape)
    grad_output[-1] = back_output(grad_logits)
    grad_input_gates, grad_hidden_gates = back_steps(grad_output)  # [length, batch, gates]
    before = xp.concatenate((zeros[None], output[:-1]))
    flat_input, flat_hidden = (grad.reshape(length * batch, -1) for grad in (grad_input_gates, grad_hidden_gates))
    tape.gradients[names[0]] += flat_input.T @ steps.reshape(length * batch, features)
    tape.gradients[names[1]] += flat_hidden.T @ before.reshape(length * batch, -1)
    tape.gradients[names[2]] += flat_input.sum(0)
    tape.gradients[names[3]] += flat_hidden.sum(0)
    return loss, logits, tape.gradients


def _rnn(gates_input, weight_hh, bias_hh, h0):
    output, _ = rnn_forward(gates_input, weight_hh, bias_hh, h0, None, False, "tanh")

    def back(grad_output):
        grad_gates, _ = rnn_backward(grad_output, 0 * h0, output, weight_hh, None, False, "tanh")
        return grad_gates, grad_gates

    return output, back


def _lstm(gates_input, weight_hh, bias_hh, h0):
    output, _, _, gates, cells = lstm_forward(gates_input, weight_hh, bias_hh, h0, h0, None, False, True)

    def back(grad_output):
        grad_gates, _, _ = lstm_backward(grad_output, 0 * h0, 0 * h0, gates, cells, weight_hh, h0, None, False)
        return grad_gates, grad_gates

    return output, back


def _gru(gates_input, weight_hh, bias_hh, h0):
    output, _, gates = gru_forward(gates_input, weight_hh, bias_hh, h0, None, False, True)

    def back(grad_output):
        return gru_backward(grad_output, 0 * h0, gates, output, weight_hh, h0, None, False)[:2]

    return output, back


STEPS = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}
