"""embedding against F.embedding: tables of language models and of recommenders."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("embedding",)


def _case(count, rows, columns, dtype=torch.float32, gradients=True):
    def inputs(device):
        return {
            "input": torch.randint(0, rows, (count,), device=device),
            "weight": torch.randn(rows, columns, device=device).to(dtype),
        }

    picked, table = count * columns * dtype.itemsize, rows * columns * dtype.itemsize
    return Case(
        f"{count} of {rows}x{columns} {str(dtype).removeprefix('torch.')}",
        inputs,
        lambda input, weight: bigkern.embedding(input, weight),
        lambda input, weight: F.embedding(input, weight),
        bytes=2 * picked + 8 * count,
        gradients=("weight",) if gradients else (),
        train_bytes=3 * picked + table + 16 * count,  # the backward reads the gradient and writes the whole table
    )


CASES = [
    _case(512, 30522, 768),
    _case(8192, 30522, 768),
    _case(8192, 2, 768),
    _case(65536, 100000, 64),
    _case(8192, 30522, 768, torch.bfloat16),
    _case(32, 1000, 64),
]

GPU_CASES = [
    _case(32768, 30522, 1024, torch.bfloat16),
    _case(16384, 128256, 4096, torch.bfloat16),
    _case(32768, 2, 1024, torch.bfloat16),
    _case(1 << 20, 1 << 20, 64),
]
TINY_CASES = [_case(9, 7, 37, torch.float16)]
