"""What one thing to verify is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ALL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Case:
    """One thing to check.

    `bigkern` and `torch` take the inputs by name and return a tensor, or a dict of named tensors; gradients of
    `gradients` (names of inputs) are checked too.
    """

    op: str
    name: str
    inputs: Callable[[], dict[str, torch.Tensor]]
    bigkern: Callable
    torch: Callable
    gradients: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES
