"""Cases of int8_linear."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case
from .linear_act import ACTIVATIONS
from .quantize import quantize_composed, scale_dtype


def _int8_linear_composed(input, qweight, weight_scale, bias=None, activation="none"):
    """The formula of bigkern.int8_linear in PyTorch; its gradient goes straight through the rounding."""
    x = input.to(scale_dtype(input.dtype))
    with torch.no_grad():
        qinput, row_scale, _ = quantize_composed(x, 0, True)
        shift = qinput * row_scale[:, None] - x
    z = F.linear(x + shift, qweight.to(x.dtype)) * weight_scale.to(x.dtype)
    if bias is not None:
        z = z + bias.to(x.dtype)
    return ACTIVATIONS[activation](z).to(input.dtype)


def _int8_linear(activation, M=33, N=37, K=65, bias=True):
    def inputs():
        drawn = {
            "input": torch.randn(M, K),
            "qweight": torch.randint(-127, 128, (N, K), dtype=torch.int8),
            "weight_scale": (torch.rand(N) + 0.5) / 127,
        }
        return {**drawn, "bias": torch.randn(N)} if bias else drawn

    return Case(
        "int8_linear",
        f"{activation} {M}x{K}x{N}" + ("" if bias else ", no bias"),
        inputs,
        lambda **tensors: bigkern.int8_linear(**tensors, activation=activation),
        lambda **tensors: _int8_linear_composed(**tensors, activation=activation),
        ("input", "weight_scale", "bias") if bias else ("input", "weight_scale"),
    )


INT8_LINEAR = [
    *(_int8_linear(activation) for activation in ACTIVATIONS),
    _int8_linear("none", bias=False),
    _int8_linear("relu", M=1, N=130, K=129),
]
