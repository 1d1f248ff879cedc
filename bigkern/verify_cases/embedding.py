"""Cases of embedding and embedding_bag."""

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


def _embedding_bag(name, mode, rows=23, columns=37, weighted=False, fixed=False, **options):
    def inputs():
        drawn = {"input": torch.randint(0, rows, (8, 5) if fixed else (40,)), "weight": torch.randn(rows, columns)}
        if not fixed:
            drawn["offsets"] = torch.tensor([0, 7, 7, 8, 30])
        return {**drawn, "per_sample_weights": torch.randn(40)} if weighted else drawn

    return Case(
        "embedding_bag",
        name,
        inputs,
        lambda **tensors: bigkern.embedding_bag(**tensors, mode=mode, **options),
        lambda **tensors: F.embedding_bag(**tensors, mode=mode, **options),
        ("weight", "per_sample_weights") if weighted else ("weight",),
    )


EMBEDDING_BAG = [
    _embedding_bag("sum", "sum"),
    _embedding_bag("mean", "mean"),
    _embedding_bag("max", "max"),
    _embedding_bag("weighted sum, padding", "sum", weighted=True, padding_idx=3),
    _embedding_bag("mean of 8x5 of 3x130, padding", "mean", 3, 130, fixed=True, padding_idx=1),
    _embedding_bag("sum, last offset, by frequency", "sum", include_last_offset=True, scale_grad_by_freq=True),
]
