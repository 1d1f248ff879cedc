"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

import bigkern.functional as F   # in place of torch.nn.functional
"""

from .ops.attention import attention as scaled_dot_product_attention

__all__ = ["scaled_dot_product_attention"]
