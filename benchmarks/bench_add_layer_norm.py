"""add_layer_norm against F.layer_norm(residual + F.dropout(input)): BERT's form, and GPT's with the sum."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("add_layer_norm",)
LEAVES = ("input", "residual", "weight", "bias")


def _case(rows, columns, with_sum=False, dropout_p=0.0, dtype=torch.float32):
    def inputs(device):
        shapes = {"input": (rows, columns), "residual": (rows, columns), "weight": (columns,), "bias": (columns,)}
        return {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}

    def ours(input, residual, weight, bias):
        if not with_sum:
            return bigkern.add_layer_norm(input, residual, (columns,), weight, bias, dropout_p=dropout_p)
        return sum(bigkern.add_layer_norm_with_sum(input, residual, (columns,), weight, bias, dropout_p=dropout_p))

    def theirs(input, residual, weight, bias):
        total = residual + F.dropout(input, dropout_p)
        output = F.layer_norm(total, (columns,), weight, bias)
        return output + total if with_sum else output

    nbytes = rows * columns * dtype.itemsize
    form = "pre-norm" if with_sum else "post-norm"
    suffix = f", dropout {dropout_p}" if dropout_p else ""
    # Forward: reads two and writes one, and the sum where it is wanted. Backward: reads the gradients and the sum, and
    # writes one gradient, or two where dropout makes them different. Pre-norm's results are added up for the timing,
    # by bigkern and PyTorch alike: three more.
    forward, train_forward, backward = (7, 7, 4) if with_sum else (3, 4, 3)
    return Case(
        f"{form} {rows}x{columns} {str(dtype).removeprefix('torch.')}{suffix}",
        inputs,
        ours,
        theirs,
        bytes=forward * nbytes,
        gradients=LEAVES,
        train_bytes=(train_forward + backward + bool(dropout_p)) * nbytes,
        agreement=float("inf") if dropout_p else 1e-2,  # two masks agree in nothing; verify compares the same one
    )


CASES = [
    _case(4096, 768),
    _case(4096, 768, dropout_p=0.1),
    _case(4096, 1024, with_sum=True),
    _case(512, 4096, with_sum=True, dropout_p=0.1),
    _case(64, 65536),
    _case(4096, 1024, dtype=torch.bfloat16),
]

GPU_CASES = [
    _case(16384, 4096, dtype=torch.bfloat16),
    _case(32768, 1024, dropout_p=0.1, dtype=torch.bfloat16),
    _case(16384, 4096, with_sum=True, dtype=torch.bfloat16),
]
TINY_CASES = [_case(5, 37, dtype=torch.float16)]
