"""Modules with the names, arguments and state_dict of torch.nn."""

from . import utils
from .attention import MultiheadAttention
from .conv import Conv2d, Conv2dAct, ConvTranspose2d
from .linear import Linear, LinearAct
from .loss import CrossEntropyLoss
from .norm import LayerNorm, RMSNorm
from .quantized_linear import QuantizedLinear, quantize_linears

__all__ = [
    "Conv2d",
    "Conv2dAct",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MultiheadAttention",
    "QuantizedLinear",
    "RMSNorm",
    "quantize_linears",
    "utils",
]
