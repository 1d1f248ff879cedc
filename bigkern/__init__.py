"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators.

`import bigkern.functional as F` in place of torch.nn.functional, `bigkern.nn` in place of torch.nn. Without torch only
`bigkern.reference` (NumPy) and `bigkern._C` (the C++ kernels on NumPy arrays) can be used.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("torch"):
    from . import functional, nn
    from .arrays import accepts_arrays
    from .dispatch import explain, use_backend
    from .ops import attention as _attention
    from .ops import cross_entropy as _cross_entropy
    from .ops import int8_linear as _int8_linear
    from .ops import linear_act as _linear_act
    from .ops import quantize as _quantize

    attention = accepts_arrays(_attention.attention)
    attention_with_lse = accepts_arrays(_attention.attention_with_lse)
    cross_entropy = accepts_arrays(_cross_entropy.cross_entropy)
    dequantize = accepts_arrays(_quantize.dequantize)
    int8_linear = accepts_arrays(_int8_linear.int8_linear)
    linear_act = accepts_arrays(_linear_act.linear_act)
    quantize = accepts_arrays(_quantize.quantize)
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'bigkern' has no attribute {name!r}")
        raise ImportError(f"bigkern.{name} needs PyTorch 2.10 or later, which is not installed: pip install torch")


__all__ = [
    "attention",
    "attention_with_lse",
    "cross_entropy",
    "dequantize",
    "explain",
    "functional",
    "int8_linear",
    "linear_act",
    "nn",
    "quantize",
    "use_backend",
]
