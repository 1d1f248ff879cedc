"""The layers that models are made of, twice: bigkern's, and what a PyTorch user would write in their place.

A model takes one of the two as its argument `layers`. Both have the same names, parameters and state_dict, so that a
model and its plain PyTorch twin differ in nothing but the kernels that run.
"""

import torch
import torch.nn.functional as F

import bigkern
from bigkern import nn

from ..ops.linear_act import ACTIVATIONS


class Ours:
    """bigkern's kernels."""

    name = "bigkern"
    Linear = nn.Linear
    LinearAct = nn.LinearAct
    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm
    Embedding = nn.Embedding
    Conv2dAct = nn.Conv2dAct
    MaxPool2d = nn.MaxPool2d
    RNN, LSTM, GRU = nn.RNN, nn.LSTM, nn.GRU
    attention = staticmethod(bigkern.attention)
    binary_cross_entropy_with_logits = staticmethod(bigkern.binary_cross_entropy_with_logits)
    cross_entropy = staticmethod(bigkern.cross_entropy)
    mse_loss = staticmethod(bigkern.mse_loss)
    rotary_embedding = staticmethod(bigkern.rotary_embedding)
    swiglu = staticmethod(bigkern.swiglu)

    @staticmethod
    def add_norm(norm, branch, residual, dropout_p, training):
        """(norm(sum), sum) with sum = residual + dropout(branch); norm is a LayerNorm or RMSNorm."""
        if isinstance(norm, torch.nn.LayerNorm):
            shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
            return bigkern.add_layer_norm_with_sum(
                branch, residual, shape, weight, bias, eps, dropout_p=dropout_p, training=training
            )
        total = residual + F.dropout(branch, dropout_p, training)
        return norm(total), total


class _PlainLinearAct(torch.nn.Linear):
    def __init__(self, in_features, out_features, bias=True, activation="relu", device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    def forward(self, input):
        return ACTIVATIONS[self.activation](super().forward(input))


class _PlainConv2dAct(torch.nn.Conv2d):
    def __init__(self, *args, activation="relu", **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = activation

    def forward(self, input):
        return ACTIVATIONS[self.activation](super().forward(input))


class Plain:
    """torch.nn and torch.nn.functional."""

    name = "PyTorch"
    Linear = torch.nn.Linear
    LinearAct = _PlainLinearAct
    LayerNorm = torch.nn.LayerNorm
    RMSNorm = torch.nn.RMSNorm
    Embedding = torch.nn.Embedding
    Conv2dAct = _PlainConv2dAct
    MaxPool2d = torch.nn.MaxPool2d
    RNN, LSTM, GRU = torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU
    attention = staticmethod(F.scaled_dot_product_attention)
    binary_cross_entropy_with_logits = staticmethod(F.binary_cross_entropy_with_logits)
    cross_entropy = staticmethod(F.cross_entropy)
    mse_loss = staticmethod(F.mse_loss)

    @staticmethod
    def rotary_embedding(input, cos, sin):
        first, second = input.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    @staticmethod
    def swiglu(gate, up):
        return F.silu(gate) * up

    @staticmethod
    def add_norm(norm, branch, residual, dropout_p, training):
        total = residual + F.dropout(branch, dropout_p, training)
        return norm(total), total


def plain_twin(model, build):
    """The same model made of PyTorch's layers, with a copy of `model`'s weights.

    Args:
        build: makes the model from layers, as `build(Plain)`.
    """
    twin = build(Plain)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return twin
