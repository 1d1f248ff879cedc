"""The price of a call: every op at a size where the arithmetic is nothing."""

import torch
import torch.nn.functional as F

import bigkern

from .bench_quantize import _composed
from .common import Case

OPS = (
    "quantize",
    "linear_act",
    "cross_entropy",
    "layer_norm",
    "rms_norm",
    "add_layer_norm",
    "attention",
    "int8_linear",
)


def _inputs(**shapes):
    return lambda device: {name: torch.randn(shape, device=device) for name, shape in shapes.items()}


def _logits(device):
    return {"input": torch.randn(4, 8, device=device), "target": torch.randint(0, 8, (4,), device=device)}


def _int8_inputs(device):
    drawn = _inputs(input=(4, 8), weight=(8, 8))(device)
    qweight, weight_scale, _ = bigkern.quantize(drawn["weight"], axis=0)
    return {**drawn, "qweight": qweight, "weight_scale": weight_scale}


CASES = [
    Case(
        "quantize 4x8",
        _inputs(input=(4, 8)),
        lambda input: bigkern.quantize(input, axis=0),
        _composed(1, symmetric=True),
    ),
    Case(
        "linear_act 4x8x8 relu",
        _inputs(input=(4, 8), weight=(8, 8), bias=(8,)),
        lambda input, weight, bias: bigkern.linear_act(input, weight, bias, "relu"),
        lambda input, weight, bias: F.relu(F.linear(input, weight, bias)),
        gradients=("input", "weight", "bias"),
    ),
    Case(
        "cross_entropy 4x8",
        _logits,
        lambda input, target: bigkern.cross_entropy(input, target),
        lambda input, target: F.cross_entropy(input, target),
        gradients=("input",),
    ),
    Case(
        "layer_norm 4x8",
        _inputs(input=(4, 8), weight=(8,), bias=(8,)),
        lambda input, weight, bias: bigkern.layer_norm(input, (8,), weight, bias),
        lambda input, weight, bias: F.layer_norm(input, (8,), weight, bias),
        gradients=("input", "weight", "bias"),
    ),
    Case(
        "rms_norm 4x8",
        _inputs(input=(4, 8), weight=(8,)),
        lambda input, weight: bigkern.rms_norm(input, (8,), weight),
        lambda input, weight: F.rms_norm(input, (8,), weight),
        gradients=("input", "weight"),
    ),
    Case(
        "add_layer_norm 4x8",
        _inputs(input=(4, 8), residual=(4, 8), weight=(8,), bias=(8,)),
        lambda input, residual, weight, bias: bigkern.add_layer_norm(input, residual, (8,), weight, bias),
        lambda input, residual, weight, bias: F.layer_norm(residual + input, (8,), weight, bias),
        gradients=("input", "residual", "weight", "bias"),
    ),
    Case(
        "attention 1x1x4x8",
        _inputs(query=(1, 1, 4, 8), key=(1, 1, 4, 8), value=(1, 1, 4, 8)),
        lambda query, key, value: bigkern.attention(query, key, value),
        lambda query, key, value: F.scaled_dot_product_attention(query, key, value),
        gradients=("query", "key", "value"),
    ),
    Case(
        "int8_linear 4x8x8",
        _int8_inputs,
        lambda input, qweight, weight_scale: bigkern.int8_linear(input, qweight, weight_scale),
        lambda input, weight: F.linear(input, weight),
        agreement=0.1,
    ),
]
