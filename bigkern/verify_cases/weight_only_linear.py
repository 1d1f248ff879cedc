"""Cases of weight_only_linear."""

import torch
import torch.nn.functional as F

import bigkern

from ..ops.weight_only_linear import dequantize_weight
from .case import Case
from .linear_act import ACTIVATIONS
from .quantize import scale_dtype


def _weight_only_linear(bits, activation="none", M=33, N=37, K=66, groups=1, zero_points=False, bias=True):
    def inputs():
        drawn = {
            "input": torch.randn(M, K),
            "qweight": torch.randint(-128, 128, (N, K), dtype=torch.int8),
            "weight_scale": (torch.rand(N, groups) + 0.5) / 2**bits,
        }
        if bits == 4:
            drawn["qweight"] = torch.randint(0, 256, (N, (K + 1) // 2), dtype=torch.uint8)
        if zero_points:
            drawn["weight_zero_point"] = torch.randint(0, 16, (N, groups), dtype=torch.int32)
        return {**drawn, "bias": torch.randn(N)} if bias else drawn

    def theirs(input, qweight, weight_scale, weight_zero_point=None, bias=None):
        scale = weight_scale.to(scale_dtype(input.dtype))
        weight = dequantize_weight(qweight, scale, weight_zero_point, K, input.dtype)
        return ACTIVATIONS[activation](F.linear(input, weight, bias))

    extras = f"{', zero points' if zero_points else ''}{'' if bias else ', no bias'}"
    return Case(
        "weight_only_linear",
        f"int{bits} {activation} {M}x{K}x{N}, {groups} groups{extras}",
        inputs,
        lambda **tensors: bigkern.weight_only_linear(**tensors, activation=activation),
        theirs,
        ("input", "bias") if bias else ("input",),
    )


WEIGHT_ONLY_LINEAR = [
    _weight_only_linear(8),
    _weight_only_linear(4, "gelu"),
    _weight_only_linear(8, "relu", groups=3, zero_points=True),
    _weight_only_linear(4, "silu", groups=3, zero_points=True, bias=False),
    _weight_only_linear(8, M=1, N=130, K=128, groups=4),
    _weight_only_linear(4, M=5, N=131, K=256, groups=8),
    _weight_only_linear(4, M=3, K=65),
]
