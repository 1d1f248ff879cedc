"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

To try them on a model: `import bigkern.functional as F` in place of `import torch.nn.functional as F`.
"""

from torch.nn._reduction import legacy_get_string

from .ops import cross_entropy as _cross_entropy
from .ops.add_layer_norm import add_layer_norm, add_layer_norm_with_sum
from .ops.attention import attention as scaled_dot_product_attention
from .ops.conv2d import conv2d, conv2d_act
from .ops.conv_transpose2d import conv_transpose2d
from .ops.layer_norm import layer_norm
from .ops.linear_act import apply_linear, linear_act
from .ops.rms_norm import rms_norm

__all__ = [
    "add_layer_norm",
    "add_layer_norm_with_sum",
    "conv2d",
    "conv2d_act",
    "conv_transpose2d",
    "cross_entropy",
    "layer_norm",
    "linear",
    "linear_act",
    "rms_norm",
    "scaled_dot_product_attention",
]


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """`torch.nn.functional.cross_entropy`; see `bigkern.cross_entropy`.

    size_average and reduce are PyTorch's deprecated spellings of reduction, which they override with a warning.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    return _cross_entropy.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def linear(input, weight, bias=None):
    """input @ weight.T + bias, as torch.nn.functional.linear.

    Args:
        input: floating tensor [..., in_features].
        weight: [out_features, in_features], or [in_features] for a result without a last dimension.
        bias: [out_features] or None.

    Returns:
        [..., out_features] of input's dtype.

    Raises:
        TypeError, ValueError: as `linear_act`.
    """
    if weight.ndim == 1:
        return apply_linear(input, weight.unsqueeze(0), bias, "none", "linear").squeeze(-1)
    return apply_linear(input, weight, bias, "none", "linear")
