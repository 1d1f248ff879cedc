"""Modules with the names, arguments and state_dict of torch.nn."""

from . import utils
from .attention import MultiheadAttention
from .linear import Linear, LinearAct
from .loss import CrossEntropyLoss
from .norm import LayerNorm, RMSNorm
from .quantized_linear import QuantizedLinear, quantize_linears
from .weight_only_linear import WeightOnlyLinear

__all__ = [
    "CrossEntropyLoss",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MultiheadAttention",
    "QuantizedLinear",
    "RMSNorm",
    "WeightOnlyLinear",
    "quantize_linears",
    "utils",
]
