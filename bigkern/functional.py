"""torch.nn.functional look-alikes: the same names, signatures and errors, computed by bigkern's kernels.

import bigkern.functional as F   # in place of torch.nn.functional
"""
