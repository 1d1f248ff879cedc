"""Modules with the names, arguments and state_dict of torch.nn."""

from . import utils
from .attention import MultiheadAttention
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct2d
from .linear import Linear, LinearAct
from .loss import CrossEntropyLoss
from .norm import GroupNorm, LayerNorm, RMSNorm
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .quantized_linear import QuantizedLinear, quantize_linears
from .weight_only_linear import WeightOnlyLinear

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct2d",
    "CrossEntropyLoss",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MaxPool2d",
    "MultiheadAttention",
    "QuantizedLinear",
    "RMSNorm",
    "WeightOnlyLinear",
    "quantize_linears",
    "utils",
]
