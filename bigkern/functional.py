"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

import bigkern.functional as F   # in place of torch.nn.functional
"""

from .ops.linear_act import apply_linear, linear_act

__all__ = ["linear", "linear_act"]


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
