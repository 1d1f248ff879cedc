"""Cases of linear_act."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _linear_act(activation, M=33, N=37, K=65, bias=True):
    def inputs():
        drawn = {"input": torch.randn(M, K), "weight": torch.randn(N, K) / K**0.5}
        return {**drawn, "bias": torch.randn(N)} if bias else drawn

    function = ACTIVATIONS[activation]
    return Case(
        "linear_act",
        f"{activation} {M}x{K}x{N}" + ("" if bias else ", no bias"),
        inputs,
        lambda **tensors: bigkern.linear_act(**tensors, activation=activation),
        lambda **tensors: function(F.linear(**tensors)),
        ("input", "weight", "bias") if bias else ("input", "weight"),
    )


LINEAR_ACT = [
    *(_linear_act(activation) for activation in ACTIVATIONS),
    _linear_act("relu", bias=False),
    _linear_act("gelu", M=1, N=129, K=130),
]
