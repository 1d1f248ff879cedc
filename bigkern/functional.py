"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

To try them on a model: `import bigkern.functional as F` in place of `import torch.nn.functional as F`.
"""

from functools import partial

import torch
from torch.nn._reduction import legacy_get_string

from .ops import cross_entropy as _cross_entropy
from .ops.add_layer_norm import add_layer_norm, add_layer_norm_with_sum
from .ops.attention import attention as scaled_dot_product_attention
from .ops.gru import gru as gru_layer
from .ops.layer_norm import layer_norm
from .ops.linear_act import apply_linear, linear_act
from .ops.lstm import lstm as lstm_layer
from .ops.rms_norm import rms_norm
from .ops.rnn import rnn as rnn_layer
from .recurrent import run_layers

__all__ = [
    "add_layer_norm",
    "add_layer_norm_with_sum",
    "cross_entropy",
    "gru",
    "layer_norm",
    "linear",
    "linear_act",
    "lstm",
    "rms_norm",
    "rnn_relu",
    "rnn_tanh",
    "scaled_dot_product_attention",
]


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """`torch.nn.functional.cross_entropy`; see `bigkern.cross_entropy`.

    size_average and reduce are PyTorch's deprecated spellings of reduction, which they override with a warning.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return _cross_entropy.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def linear(input, weight, bias=None):
    """input @ weight.T + bias, as torch.nn.functional.linear.

    Args:
        input: floating tensor [..., in_features].
        weight: [out_features, in_features], or [in_features] for a result without a last dimension.
        bias: [out_features] or None.

    Returns:
        [..., out_features] of input's dtype.

    Raises:
        TypeError, ValueError: as `linear_act`.
    """
    if weight.ndim == 1:
        return apply_linear(input, weight.unsqueeze(0), bias, "none", "linear").squeeze(-1)
    return apply_linear(input, weight, bias, "none", "linear")


def lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, *, lengths=None):
    """Layers of an LSTM on top of one another, as `torch.lstm`; one layer and direction alone is `bigkern.lstm`.

    Args:
        input: floating [length, batch, features]; with batch_first [batch, length, features].
        hx: (h0, c0), each [num_layers * directions, batch, hidden].
        params: weight_ih [4 * hidden, features], weight_hh [4 * hidden, hidden] and, with has_biases, bias_ih and
            bias_hh [4 * hidden] of each layer and direction in turn.
        dropout: probability of zeroing an element between two layers, where train is True.
        lengths: int64 [batch] on input's device: where each sequence ends, as with packed sequences (which torch.lstm
            takes in their place): from there on its output is 0 and its states stay as they are.

    Returns:
        (output [length, batch, directions * hidden] in input's order of dimensions, h_n, c_n as hx).

    Raises:
        TypeError, ValueError: dtypes, shapes or devices do not go together.
    """
    options = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    return run_layers("lstm", torch.lstm, lstm_layer, input, hx, *options, lengths)


def gru(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, *, lengths=None):
    """Layers of a GRU on top of one another, as `torch.gru`; one layer and direction alone is `bigkern.gru`.

    Args:
        As `lstm`, with weights of 3 * hidden rows, and hx: h0 [num_layers * directions, batch, hidden].

    Returns:
        (output [length, batch, directions * hidden] in input's order of dimensions, h_n as hx).

    Raises:
        TypeError, ValueError: dtypes, shapes or devices do not go together.
    """
    options = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    return run_layers("gru", torch.gru, gru_layer, input, [hx], *options, lengths)


def rnn_tanh(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, *, lengths=None):
    """Layers of an RNN on top of one another, as `torch.rnn_tanh`; one layer and direction alone is `bigkern.rnn`.

    Args:
        As `lstm`, with weights of hidden rows, and hx: h0 [num_layers * directions, batch, hidden].

    Returns:
        (output [length, batch, directions * hidden] in input's order of dimensions, h_n as hx).

    Raises:
        TypeError, ValueError: dtypes, shapes or devices do not go together.
    """
    options = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    return run_layers("rnn", torch.rnn_tanh, rnn_layer, input, [hx], *options, lengths)


def rnn_relu(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, *, lengths=None):
    """`rnn_tanh` with max(z, 0) in place of tanh(z), as `torch.rnn_relu`."""
    options = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    layer = partial(rnn_layer, nonlinearity="relu")
    return run_layers("rnn", torch.rnn_relu, layer, input, [hx], *options, lengths)
