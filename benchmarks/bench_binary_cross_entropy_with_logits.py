"""binary_cross_entropy_with_logits against PyTorch's, plain and with the weights of an unbalanced set."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("binary_cross_entropy_with_logits",)


def _case(N, M, dtype=torch.float32, weighted=False):
    def inputs(device):
        drawn = {"input": torch.randn(N, M, device=device).to(dtype)}
        drawn["target"] = torch.randint(0, 2, (N, M), device=device).to(dtype)
        return {**drawn, "pos_weight": torch.rand(M, device=device).to(dtype) * 5 if weighted else None}

    nbytes = 2 * N * M * dtype.itemsize
    return Case(
        f"{N}x{M} {str(dtype).removeprefix('torch.')}{' pos_weight' if weighted else ''}",
        inputs,
        lambda input, target, pos_weight: bigkern.binary_cross_entropy_with_logits(
            input, target, pos_weight=pos_weight
        ),
        lambda input, target, pos_weight: F.binary_cross_entropy_with_logits(input, target, pos_weight=pos_weight),
        bytes=nbytes,
        gradients=("input",),
        train_bytes=5 * nbytes // 2,  # backward reads both again, and writes one gradient
    )


CASES = [
    _case(64, 128),
    _case(256, 784),
    _case(4096, 1024),
    _case(4096, 1024, weighted=True),
    _case(4096, 1024, torch.bfloat16),
]
GPU_CASES = [_case(64, 128), _case(16384, 4096), _case(16384, 4096, torch.bfloat16, weighted=True)]
TINY_CASES = [_case(5, 37, torch.float16, weighted=True)]
