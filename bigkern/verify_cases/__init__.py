"""What `bigkern verify` checks: a case is inputs, the bigkern call and PyTorch's own call, on the same named inputs.

The oracle needs no line here: it is the bigkern call in float64 on the `reference` backend. Floating inputs are drawn
in float32 and rounded to the dtype under test. Sizes are odd, so that every kernel meets its remainders.
"""

from .attention import ATTENTION
from .attention_decode import ATTENTION_DECODE
from .attention_varlen import ATTENTION_VARLEN
from .case import ALL_DTYPES, Case
from .convolution import CONV2D, CONV_TRANSPOSE2D
from .cross_entropy import CROSS_ENTROPY
from .embedding import EMBEDDING, EMBEDDING_BAG, EMBEDDING_LAYER_NORM
from .gated_act import GATED_ACT
from .images import ADAPTIVE_AVG_POOL2D, AVG_POOL2D, BATCH_NORM_ACT, GROUP_NORM, MAX_POOL2D
from .int8_linear import INT8_LINEAR
from .linear_act import LINEAR_ACT
from .losses import LOSSES
from .norms import ADD_LAYER_NORM, LAYER_NORM, RMS_NORM
from .optimizers import OPTIMIZERS
from .quantize import QUANTIZE
from .recurrent import GRU, LSTM, RNN
from .rotary_embedding import ROTARY_EMBEDDING
from .weight_only_linear import WEIGHT_ONLY_LINEAR

__all__ = ["ALL_DTYPES", "CASES", "OPS", "Case"]

CASES = [
    *ATTENTION,
    *ATTENTION_DECODE,
    *ATTENTION_VARLEN,
    *LINEAR_ACT,
    *CONV2D,
    *CONV_TRANSPOSE2D,
    *CROSS_ENTROPY,
    *LOSSES,
    *LAYER_NORM,
    *RMS_NORM,
    *ADD_LAYER_NORM,
    *EMBEDDING,
    *EMBEDDING_BAG,
    *EMBEDDING_LAYER_NORM,
    *ROTARY_EMBEDDING,
    *GATED_ACT,
    *BATCH_NORM_ACT,
    *GROUP_NORM,
    *MAX_POOL2D,
    *AVG_POOL2D,
    *ADAPTIVE_AVG_POOL2D,
    *LSTM,
    *GRU,
    *RNN,
    *QUANTIZE,
    *INT8_LINEAR,
    *WEIGHT_ONLY_LINEAR,
    *OPTIMIZERS,
]
OPS = tuple(dict.fromkeys(case.op for case in CASES))
