"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

To try them on a model: `import bigkern.functional as F` in place of `import torch.nn.functional as F`.
"""

from functools import partial

import torch
from torch.nn._reduction import legacy_get_string

from .ops import binary_cross_entropy_with_logits as _binary_cross_entropy
from .ops import cross_entropy as _cross_entropy
from .ops import kl_div as _kl_div
from .ops import mse_loss as _mse_loss
from .ops.adaptive_avg_pool2d import adaptive_avg_pool2d
from .ops.add_layer_norm import add_layer_norm, add_layer_norm_with_sum
from .ops.attention import attention as scaled_dot_product_attention
from .ops.avg_pool2d import avg_pool2d
from .ops.batch_norm_act import batch_norm_act
from .ops.conv2d import conv2d, conv2d_act
from .ops.conv_transpose2d import conv_transpose2d
from .ops.distillation_loss import distillation_loss
from .ops.embedding import embedding
from .ops.embedding_bag import embedding_bag
from .ops.embedding_layer_norm import embedding_layer_norm
from .ops.gated_act import gated_act, geglu, swiglu
from .ops.group_norm import group_norm
from .ops.gru import gru as gru_layer
from .ops.layer_norm import layer_norm
from .ops.linear_act import apply_linear, linear_act
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.lstm import lstm as lstm_layer
from .ops.max_pool2d import max_pool2d
from .ops.rms_norm import rms_norm
from .ops.rnn import rnn as rnn_layer
from .ops.rotary_embedding import rotary_embedding
from .recurrent import run_layers

__all__ = [
    "adaptive_avg_pool2d",
    "add_layer_norm",
    "add_layer_norm_with_sum",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_act",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "conv2d_act",
    "conv_transpose2d",
    "cross_entropy",
    "distillation_loss",
    "embedding",
    "embedding_bag",
    "embedding_layer_norm",
    "gated_act",
    "geglu",
    "group_norm",
    "gru",
    "kl_div",
    "layer_norm",
    "linear",
    "linear_act",
    "linear_cross_entropy",
    "lstm",
    "max_pool2d",
    "mse_loss",
    "rms_norm",
    "rnn_relu",
    "rnn_tanh",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "swiglu",
]


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> torch.Tensor:
    """`torch.nn.functional.batch_norm`; see `bigkern.batch_norm_act`."""
    return batch_norm_act(input, running_mean, running_var, weight, bias, training, momentum, eps)


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


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """`torch.nn.functional.mse_loss`; see `bigkern.mse_loss` and, for size_average and reduce, `cross_entropy`."""
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return _mse_loss.mse_loss(input, target, reduction, weight)


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """`torch.nn.functional.binary_cross_entropy_with_logits`; see `bigkern.binary_cross_entropy_with_logits` and, for
    size_average and reduce, `cross_entropy`."""
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return _binary_cross_entropy.binary_cross_entropy_with_logits(input, target, weight, reduction, pos_weight)


def kl_div(input, target, size_average=None, reduce=None, reduction="mean", log_target=False):
    """`torch.nn.functional.kl_div`; see `bigkern.kl_div` and, for size_average and reduce, `cross_entropy`."""
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return _kl_div.kl_div(input, target, reduction, log_target)


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
