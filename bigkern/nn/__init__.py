"""Modules with the names, arguments and state_dict of torch.nn."""

from . import loss, utils
from .attention import MultiheadAttention
from .linear import Linear, LinearAct
from .loss import BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, MSELoss
from .norm import LayerNorm, RMSNorm
from .quantized_linear import QuantizedLinear, quantize_linears
from .weight_only_linear import WeightOnlyLinear

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MSELoss",
    "MultiheadAttention",
    "QuantizedLinear",
    "RMSNorm",
    "WeightOnlyLinear",
    "quantize_linears",
    "utils",
]

if hasattr(loss, "LinearCrossEntropyLoss"):
    LinearCrossEntropyLoss = loss.LinearCrossEntropyLoss
    __all__.append("LinearCrossEntropyLoss")
