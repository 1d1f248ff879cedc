"""What `bigkern verify` checks: a case is inputs, the bigkern call and PyTorch's own call, on the same named inputs.

The oracle needs no line here: it is the bigkern call in float64 on the `reference` backend. Floating inputs are drawn
in float32 and rounded to the dtype under test. Sizes are odd, so that every kernel meets its remainders.
"""

from .attention import ATTENTION
from .attention_decode import ATTENTION_DECODE
from .attention_varlen import ATTENTION_VARLEN
from .case import ALL_DTYPES, Case
from .cross_entropy import CROSS_ENTROPY
from .int8_linear import INT8_LINEAR
from .linear_act import LINEAR_ACT
from .norms import ADD_LAYER_NORM, LAYER_NORM, RMS_NORM
from .optimizers import OPTIMIZERS
from .quantize import QUANTIZE
from .weight_only_linear import WEIGHT_ONLY_LINEAR

__all__ = ["ALL_DTYPES", "CASES", "OPS", "Case"]

CASES = [
    *ATTENTION,
    *ATTENTION_DECODE,
    *ATTENTION_VARLEN,
    *LINEAR_ACT,
    *CROSS_ENTROPY,
    *LAYER_NORM,
    *RMS_NORM,
    *ADD_LAYER_NORM,
    *QUANTIZE,
    *INT8_LINEAR,
    *WEIGHT_ONLY_LINEAR,
    *OPTIMIZERS,
]
OPS = tuple(dict.fromkeys(case.op for case in CASES))
