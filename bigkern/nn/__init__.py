"""Modules with the names, arguments and state_dict of torch.nn."""

from . import loss, utils
from .attention import MultiheadAttention
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct2d
from .conv import Conv2d, Conv2dAct, ConvTranspose2d
from .embedding import Embedding, EmbeddingBag
from .linear import Linear, LinearAct
from .loss import BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, MSELoss
from .norm import GroupNorm, LayerNorm, RMSNorm
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .quantized_linear import QuantizedLinear, quantize_linears
from .recurrent import GRU, LSTM, RNN
from .weight_only_linear import WeightOnlyLinear

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct2d",
    "Conv2d",
    "Conv2dAct",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Embedding",
    "EmbeddingBag",
    "GroupNorm",
    "KLDivLoss",
    "LayerNorm",
    "Linear",
    "LinearAct",
    "MSELoss",
    "MaxPool2d",
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
