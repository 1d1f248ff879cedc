"""Modules with the names, arguments and state_dict of torch.nn."""

from .linear import Linear, LinearAct
from .quantized_linear import QuantizedLinear, quantize_linears

__all__ = ["Linear", "LinearAct", "QuantizedLinear", "quantize_linears"]
