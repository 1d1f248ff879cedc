"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators.

`import bigkern.functional as F` in place of torch.nn.functional, `bigkern.nn` in place of torch.nn, `bigkern.optim` in
place of torch.optim. Without torch only `bigkern.reference` (NumPy) and `bigkern._C` (the C++ kernels on NumPy arrays)
can be used.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("torch"):
    from . import functional, nn, optim
    from .dispatch import explain, use_backend
    from .ops.adagrad import adagrad
    from .ops.adam import adam
    from .ops.add_layer_norm import add_layer_norm, add_layer_norm_with_sum
    from .ops.attention import attention, attention_with_lse
    from .ops.cross_entropy import cross_entropy
    from .ops.grad_norm import grad_norm
    from .ops.int8_linear import int8_linear
    from .ops.layer_norm import layer_norm
    from .ops.linear_act import linear_act
    from .ops.quantize import dequantize, quantize
    from .ops.rms_norm import rms_norm
    from .ops.rmsprop import rmsprop
    from .ops.sgd import sgd
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'bigkern' has no attribute {name!r}")
        raise ImportError(f"bigkern.{name} needs PyTorch 2.10 or later, which is not installed: pip install torch")


__all__ = [
    "adagrad",
    "adam",
    "add_layer_norm",
    "add_layer_norm_with_sum",
    "attention",
    "attention_with_lse",
    "cross_entropy",
    "dequantize",
    "explain",
    "functional",
    "grad_norm",
    "int8_linear",
    "layer_norm",
    "linear_act",
    "nn",
    "optim",
    "quantize",
    "rms_norm",
    "rmsprop",
    "sgd",
    "use_backend",
]
