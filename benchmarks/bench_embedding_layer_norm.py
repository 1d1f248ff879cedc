"""embedding_layer_norm against three F.embedding, F.layer_norm and F.dropout: the first layer of BERT."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("embedding_layer_norm",)
LEAVES = ("word_weight", "position_weight", "token_type_weight", "weight", "bias")


def _case(batch, length, columns, words=30522, dropout_p=0.0, dtype=torch.float32):
    def inputs(device):
        shapes = ((words, columns), (512, columns), (2, columns), (columns,), (columns,))
        drawn = {name: torch.randn(shape, device=device).to(dtype) for name, shape in zip(LEAVES, shapes, strict=True)}
        return {
            "input": torch.randint(0, words, (batch, length), device=device),
            "token_type_ids": torch.randint(0, 2, (batch, length), device=device),
            **drawn,
        }

    def ours(input, token_type_ids, word_weight, position_weight, token_type_weight, weight, bias):
        return bigkern.embedding_layer_norm(
            input,
            word_weight,
            position_weight,
            token_type_weight,
            weight,
            bias,
            token_type_ids,
            dropout_p=dropout_p,
        )

    def theirs(input, token_type_ids, word_weight, position_weight, token_type_weight, weight, bias):
        total = F.embedding(input, word_weight) + F.embedding(token_type_ids, token_type_weight)
        total = total + F.embedding(torch.arange(input.shape[1], device=input.device), position_weight)
        return F.dropout(F.layer_norm(total, (columns,), weight, bias, 1e-12), dropout_p)

    picked, table = batch * length * columns * dtype.itemsize, words * columns * dtype.itemsize
    suffix = f", dropout {dropout_p}" if dropout_p else ""
    return Case(
        f"{batch}x{length}x{columns} of {words} {str(dtype).removeprefix('torch.')}{suffix}",
        inputs,
        ours,
        theirs,
        bytes=2 * picked,  # the words' rows and the output; the other tables stay in a cache
        gradients=LEAVES,
        # The backward reads words and gradients, keeps the sum's gradient, reads it three times and writes the table.
        train_bytes=(2 + 2 + 1 + 3) * picked + table,
        agreement=float("inf") if dropout_p else 1e-2,  # two masks agree in nothing; verify compares the same one
    )


CASES = [
    _case(8, 128, 768),
    _case(8, 128, 768, dropout_p=0.1),
    _case(16, 512, 768),
    _case(8, 128, 768, dtype=torch.bfloat16),
]

GPU_CASES = [
    _case(64, 512, 1024, dtype=torch.bfloat16),
    _case(64, 512, 1024, dropout_p=0.1, dtype=torch.bfloat16),
]
TINY_CASES = [_case(2, 3, 37, words=7, dtype=torch.float16)]
