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
    Embedding = torch.nn.Embedding
    attention = staticmethod(bigkern.attention)
    cross_entropy = staticmethod(bigkern.cross_entropy)

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


class Plain:
    """torch.nn and torch.nn.functional."""

    name = "PyTorch"
    Linear = torch.nn.Linear
    LinearAct = _PlainLinearAct
    LayerNorm = torch.nn.LayerNorm
    RMSNorm = torch.nn.RMSNorm
    Embedding = torch.nn.Embedding
    attention = staticmethod(F.scaled_dot_product_attention)
    cross_entropy = staticmethod(F.cross_entropy)

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
