"""Modules with the names, arguments and state_dict of torch.nn."""

from .linear import Linear, LinearAct
from .loss import CrossEntropyLoss
from .quantized_linear import QuantizedLinear, quantize_linears

__all__ = ["CrossEntropyLoss", "Linear", "LinearAct", "QuantizedLinear", "quantize_linears"]
