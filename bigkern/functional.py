"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

import bigkern.functional as F   # in place of torch.nn.functional
"""

from torch.nn._reduction import legacy_get_string

from .ops import cross_entropy as _cross_entropy

__all__ = ["cross_entropy"]


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
