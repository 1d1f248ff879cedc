"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators."""

from .dispatch import explain, use_backend
from .ops.int8_linear import int8_linear
from .ops.linear_act import linear_act
from .ops.quantize import dequantize, quantize

__version__ = "0.1.0"

__all__ = [
    "dequantize",
    "explain",
    "int8_linear",
    "linear_act",
    "quantize",
    "use_backend",
]
