"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators."""

from .dispatch import explain, use_backend
from .ops.cross_entropy import cross_entropy
from .ops.quantize import dequantize, quantize

__version__ = "0.1.0"

__all__ = [
    "cross_entropy",
    "dequantize",
    "explain",
    "quantize",
    "use_backend",
]
