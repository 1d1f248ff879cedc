"""Cases of lstm, gru and rnn: layers with their input's product, as PyTorch's own functions."""

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .. import functional
from .case import Case

LENGTHS = [7, 3, 5, 1, 7]


def _joined(output, *states):
    """One tensor, so that gradients flow from all."""
    return torch.cat([output.flatten(), *(state.flatten() for state in states)])


def _case(op, function, num_gates, num_states, name, shape, bidirectional=False, packed=False, bias=True):
    length, batch, input_size, hidden = shape
    directions = ("", "_reverse") if bidirectional else ("",)
    weights = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if bias else ("weight_ih", "weight_hh")
    names = [f"{weight}{direction}" for direction in directions for weight in weights]
    states = ("h0", "c0")[:num_states]

    def inputs():
        width = num_gates * hidden
        shapes = {"weight_ih": (width, input_size), "weight_hh": (width, hidden)}
        drawn = {"input": torch.randn(length, batch, input_size)}
        drawn |= {
            name: torch.randn(shapes.get(name.removesuffix("_reverse"), (width,))) / hidden**0.5 for name in names
        }
        if function == "rnn_relu":  # where rounding turns a sum's sign, the gradient jumps: keep sums away from 0
            drawn |= {name: 8 * drawn[name].sign() for name in names if name.startswith("bias_ih")}
            drawn |= {name: 0.1 * drawn[name] for name in names if name.startswith("weight_hh")}
        return drawn | {state: torch.randn(len(directions), batch, hidden) for state in states}

    def arguments(rest):
        hx = [rest[state] for state in states]
        params = [rest[name] for name in names]
        return hx if num_states > 1 else hx[0], params, bias, 1, 0.0, False, bidirectional

    def ours(input, **rest):
        lengths = torch.tensor(LENGTHS, device=input.device) if packed else None
        return _joined(*getattr(functional, function)(input, *arguments(rest), False, lengths=lengths))

    def theirs(input, **rest):
        if not packed:
            return _joined(*getattr(torch, function)(input, *arguments(rest), False))
        sequences = pack_padded_sequence(input, torch.tensor(LENGTHS), enforce_sorted=False)
        rest |= {state: rest[state].index_select(1, sequences.sorted_indices) for state in states}
        data, *final = getattr(torch, function)(sequences.data, sequences.batch_sizes, *arguments(rest))
        output, _ = pad_packed_sequence(sequences._replace(data=data))
        return _joined(output, *(state.index_select(1, sequences.unsorted_indices) for state in final))

    return Case(op, name, inputs, ours, theirs, ("input", *names, *states))


def _cases(op, function, *counts):
    label = "" if op == function else f"{function}, "
    bias = function == "rnn_relu"
    return [
        _case(op, function, *counts, f"{label}7x5x11x19", (7, 5, 11, 19)),
        _case(op, function, *counts, f"{label}3x13x5x70{'' if bias else ', no bias'}", (3, 13, 5, 70), bias=bias),
        _case(
            op, function, *counts, f"{label}packed, both directions", (7, 5, 11, 19), bidirectional=True, packed=True
        ),
    ]


LSTM = _cases("lstm", "lstm", 4, 2)
GRU = _cases("gru", "gru", 3, 1)
RNN = [*_cases("rnn", "rnn_tanh", 1, 1), *_cases("rnn", "rnn_relu", 1, 1)]
