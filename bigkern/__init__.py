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
    from .ops import adaptive_avg_pool2d as _adaptive_avg_pool2d
    from .ops import add_layer_norm as _add_layer_norm
    from .ops import attention as _attention
    from .ops import attention_decode as _attention_decode
    from .ops import attention_varlen as _attention_varlen
    from .ops import avg_pool2d as _avg_pool2d
    from .ops import batch_norm_act as _batch_norm_act
    from .ops import binary_cross_entropy_with_logits as _binary_cross_entropy
    from .ops import conv2d as _conv2d
    from .ops import conv_transpose2d as _conv_transpose2d
    from .ops import cross_entropy as _cross_entropy
    from .ops import distillation_loss as _distillation_loss
    from .ops import embedding as _embedding
    from .ops import embedding_bag as _embedding_bag
    from .ops import embedding_layer_norm as _embedding_layer_norm
    from .ops import gated_act as _gated_act
    from .ops import group_norm as _group_norm
    from .ops import gru as _gru
    from .ops import int8_linear as _int8_linear
    from .ops import kl_div as _kl_div
    from .ops import layer_norm as _layer_norm
    from .ops import linear_act as _linear_act
    from .ops import linear_cross_entropy as _linear_cross_entropy
    from .ops import lstm as _lstm
    from .ops import max_pool2d as _max_pool2d
    from .ops import mse_loss as _mse_loss
    from .ops import quantize as _quantize
    from .ops import rms_norm as _rms_norm
    from .ops import rnn as _rnn
    from .ops import rotary_embedding as _rotary_embedding
    from .ops import weight_only_linear as _weight_only_linear
    from .ops.adagrad import adagrad
    from .ops.adam import adam
    from .ops.grad_norm import grad_norm
    from .ops.rmsprop import rmsprop
    from .ops.sgd import sgd

    adaptive_avg_pool2d = accepts_arrays(_adaptive_avg_pool2d.adaptive_avg_pool2d)
    add_layer_norm = accepts_arrays(_add_layer_norm.add_layer_norm)
    add_layer_norm_with_sum = accepts_arrays(_add_layer_norm.add_layer_norm_with_sum)
    attention = accepts_arrays(_attention.attention)
    attention_decode = accepts_arrays(_attention_decode.attention_decode)
    attention_decode_with_lse = accepts_arrays(_attention_decode.attention_decode_with_lse)
    attention_varlen = accepts_arrays(_attention_varlen.attention_varlen)
    attention_varlen_with_lse = accepts_arrays(_attention_varlen.attention_varlen_with_lse)
    attention_with_lse = accepts_arrays(_attention.attention_with_lse)
    avg_pool2d = accepts_arrays(_avg_pool2d.avg_pool2d)
    batch_norm_act = accepts_arrays(_batch_norm_act.batch_norm_act)
    binary_cross_entropy_with_logits = accepts_arrays(_binary_cross_entropy.binary_cross_entropy_with_logits)
    cache_append = accepts_arrays(_attention_decode.cache_append)
    conv2d = accepts_arrays(_conv2d.conv2d)
    conv2d_act = accepts_arrays(_conv2d.conv2d_act)
    conv_transpose2d = accepts_arrays(_conv_transpose2d.conv_transpose2d)
    cross_entropy = accepts_arrays(_cross_entropy.cross_entropy)
    dequantize = accepts_arrays(_quantize.dequantize)
    dequantize_weight = accepts_arrays(_weight_only_linear.dequantize_weight)
    distillation_loss = accepts_arrays(_distillation_loss.distillation_loss)
    embedding = accepts_arrays(_embedding.embedding)
    embedding_bag = accepts_arrays(_embedding_bag.embedding_bag)
    embedding_layer_norm = accepts_arrays(_embedding_layer_norm.embedding_layer_norm)
    gated_act = accepts_arrays(_gated_act.gated_act)
    geglu = accepts_arrays(_gated_act.geglu)
    group_norm = accepts_arrays(_group_norm.group_norm)
    gru = accepts_arrays(_gru.gru)
    int8_linear = accepts_arrays(_int8_linear.int8_linear)
    kl_div = accepts_arrays(_kl_div.kl_div)
    layer_norm = accepts_arrays(_layer_norm.layer_norm)
    linear_act = accepts_arrays(_linear_act.linear_act)
    linear_cross_entropy = accepts_arrays(_linear_cross_entropy.linear_cross_entropy)
    lstm = accepts_arrays(_lstm.lstm)
    max_pool2d = accepts_arrays(_max_pool2d.max_pool2d)
    mse_loss = accepts_arrays(_mse_loss.mse_loss)
    quantize = accepts_arrays(_quantize.quantize)
    quantize_weight = accepts_arrays(_weight_only_linear.quantize_weight)
    rms_norm = accepts_arrays(_rms_norm.rms_norm)
    rnn = accepts_arrays(_rnn.rnn)
    rotary_embedding = accepts_arrays(_rotary_embedding.rotary_embedding)
    swiglu = accepts_arrays(_gated_act.swiglu)
    weight_only_linear = accepts_arrays(_weight_only_linear.weight_only_linear)
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'bigkern' has no attribute {name!r}")
        raise ImportError(f"bigkern.{name} needs PyTorch 2.10 or later, which is not installed: pip install torch")


__all__ = [
    "adagrad",
    "adam",
    "adaptive_avg_pool2d",
    "add_layer_norm",
    "add_layer_norm_with_sum",
    "attention",
    "attention_decode",
    "attention_decode_with_lse",
    "attention_varlen",
    "attention_varlen_with_lse",
    "attention_with_lse",
    "avg_pool2d",
    "batch_norm_act",
    "binary_cross_entropy_with_logits",
    "cache_append",
    "conv2d",
    "conv2d_act",
    "conv_transpose2d",
    "cross_entropy",
    "dequantize",
    "dequantize_weight",
    "distillation_loss",
    "embedding",
    "embedding_bag",
    "embedding_layer_norm",
    "explain",
    "functional",
    "gated_act",
    "geglu",
    "grad_norm",
    "group_norm",
    "gru",
    "int8_linear",
    "kl_div",
    "layer_norm",
    "linear_act",
    "linear_cross_entropy",
    "lstm",
    "max_pool2d",
    "mse_loss",
    "nn",
    "optim",
    "quantize",
    "quantize_weight",
    "rms_norm",
    "rmsprop",
    "rnn",
    "rotary_embedding",
    "sgd",
    "swiglu",
    "use_backend",
    "weight_only_linear",
]
