"""Cases of embedding, embedding_bag and embedding_layer_norm."""

import torch
import torch.nn.functional as F

import bigkern

from ..backends.torch_philox import dropout_keep_rows
from ..ops.embedding_layer_norm import embedding_layer_norm_forward
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


TABLES = ("word_weight", "position_weight", "token_type_weight")
DROPOUT_P = 0.1


def _embedding_layer_norm(name, shape=(3, 7), columns=37, words=11, dropped=False, **options):
    """With dropout: the kernel on a random state of the case's own, and the formula with the mask of that state."""
    length, rows = shape[-1], shape[0] * shape[1]

    def inputs():
        drawn = {"input": torch.randint(0, words, shape), "token_type_ids": torch.randint(0, 2, shape)}
        for table, size in zip(TABLES, (words, length, 2), strict=True):
            drawn[table] = torch.randn(size, columns)
        drawn |= {parameter: torch.randn(columns) for parameter in ("weight", "bias")}
        return {**drawn, "rng_state": torch.tensor([987654321, 7])} if dropped else drawn

    def ours(rng_state=None, **tensors):
        if not dropped:
            return bigkern.embedding_layer_norm(**tensors, **options)
        positions = torch.arange(length, device=rng_state.device).expand(shape)
        output, _, _ = embedding_layer_norm_forward(
            tensors["input"].reshape(-1),
            tensors["word_weight"],
            positions.reshape(-1),
            tensors["position_weight"],
            tensors["token_type_ids"].reshape(-1),
            tensors["token_type_weight"],
            tensors["weight"],
            tensors["bias"],
            rng_state,
            -1,
            1e-12,
            DROPOUT_P,
        )
        return output.view(*shape, columns)

    def theirs(input, token_type_ids, word_weight, position_weight, token_type_weight, weight, bias, rng_state=None):
        total = F.embedding(input, word_weight, options.get("padding_idx"))
        total = total + F.embedding(token_type_ids, token_type_weight) + position_weight
        output = F.layer_norm(total, [columns], weight, bias, 1e-12)
        if not dropped:
            return output
        keep = dropout_keep_rows(rng_state, DROPOUT_P, rows, columns).view(output.shape)
        return output * keep / (1 - DROPOUT_P)

    return Case("embedding_layer_norm", name, inputs, ours, theirs, (*TABLES, "weight", "bias"))


EMBEDDING_LAYER_NORM = [
    _embedding_layer_norm("3x7 of 37"),
    _embedding_layer_norm("5x8 of 130, padding", (5, 8), 130, padding_idx=3),
    _embedding_layer_norm("5x8 of 130, dropout", (5, 8), 130, dropped=True),
]
