"""bigkern: hand-written compute kernels that drop in for PyTorch's own operators.

`import bigkern.functional as F` in place of torch.nn.functional, `bigkern.nn` in place of torch.nn, `bigkern.optim` in
place of torch.optim. Without torch only `bigkern.reference` (NumPy) and `bigkern._C` (the C++ kernels on NumPy arrays)
can be used.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("torch"):
    from . import functional, nn, optim
    from .arrays import accepts_arrays
    from .dispatch import explain, use_backend
    from .ops import add_layer_norm as _add_layer_norm
    from .ops import attention as _attention
    from .ops import attention_decode as _attention_decode
    from .ops import attention_varlen as _attention_varlen
    from .ops import cross_entropy as _cross_entropy
    from .ops import int8_linear as _int8_linear
    from .ops import layer_norm as _layer_norm
    from .ops import linear_act as _linear_act
    from .ops import quantize as _quantize
    from .ops import rms_norm as _rms_norm
    from .ops import weight_only_linear as _weight_only_linear
    from .ops.adagrad import adagrad
    from .ops.adam import adam
    from .ops.grad_norm import grad_norm
    from .ops.rmsprop import rmsprop
    from .ops.sgd import sgd
    from .ops.weight_only_linear import dequantize_weight, quantize_weight

    add_layer_norm = accepts_arrays(_add_layer_norm.add_layer_norm)
    add_layer_norm_with_sum = accepts_arrays(_add_layer_norm.add_layer_norm_with_sum)
    attention = accepts_arrays(_attention.attention)
    attention_with_lse = accepts_arrays(_attention.attention_with_lse)
    attention_decode = accepts_arrays(_attention_decode.attention_decode)
    attention_decode_with_lse = accepts_arrays(_attention_decode.attention_decode_with_lse)
    attention_varlen = accepts_arrays(_attention_varlen.attention_varlen)
    attention_varlen_with_lse = accepts_arrays(_attention_varlen.attention_varlen_with_lse)
    cache_append = accepts_arrays(_attention_decode.cache_append)
    cross_entropy = accepts_arrays(_cross_entropy.cross_entropy)
    dequantize = accepts_arrays(_quantize.dequantize)
    int8_linear = accepts_arrays(_int8_linear.int8_linear)
    layer_norm = accepts_arrays(_layer_norm.layer_norm)
    linear_act = accepts_arrays(_linear_act.linear_act)
    quantize = accepts_arrays(_quantize.quantize)
    rms_norm = accepts_arrays(_rms_norm.rms_norm)
    weight_only_linear = accepts_arrays(_weight_only_linear.weight_only_linear)
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
    "attention_decode",
    "attention_decode_with_lse",
    "attention_varlen",
    "attention_varlen_with_lse",
    "attention_with_lse",
    "cache_append",
    "cross_entropy",
    "dequantize",
    "dequantize_weight",
    "explain",
    "functional",
    "grad_norm",
    "int8_linear",
    "layer_norm",
    "linear_act",
    "nn",
    "optim",
    "quantize",
    "quantize_weight",
    "rms_norm",
    "rmsprop",
    "sgd",
    "use_backend",
    "weight_only_linear",
]
