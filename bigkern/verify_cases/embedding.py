"""Cases of embedding."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _embedding(name, shape=(5, 9), rows=23, columns=37, dtype=torch.int64, **options):
    return Case(
        "embedding",
        name,
        lambda: {"input": torch.randint(0, rows, shape, dtype=dtype), "weight": torch.randn(rows, columns)},
        lambda input, weight: bigkern.embedding(input, weight, **options),
        lambda input, weight: F.embedding(input, weight, **options),
        ("weight",),
    )


EMBEDDING = [
    _embedding("5x9 of 23x37"),
    _embedding("300 of 3x5, padding", (300,), 3, 5, padding_idx=1),
    _embedding("70 of 1000x130, int32", (70,), 1000, 130, torch.int32),
    _embedding("gradient by frequency", scale_grad_by_freq=True),
]
