"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators."""

from .dispatch import explain, use_backend
from .ops.attention import attention, attention_with_lse
from .ops.quantize import dequantize, quantize

__version__ = "0.1.0"

__all__ = [
    "attention",
    "attention_with_lse",
    "dequantize",
    "explain",
    "quantize",
    "use_backend",
]
