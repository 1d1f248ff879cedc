"""mse_loss against F.mse_loss: a pass over two tensors."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("mse_loss",)


def _case(N, M, dtype=torch.float32):
    nbytes = 2 * N * M * dtype.itemsize
    return Case(
        f"{N}x{M} {str(dtype).removeprefix('torch.')}",
        lambda device: {name: torch.randn(N, M, device=device).to(dtype) for name in ("input", "target")},
        lambda input, target: bigkern.mse_loss(input, target),
        lambda input, target: F.mse_loss(input, target),
        bytes=nbytes,
        gradients=("input",),
        train_bytes=5 * nbytes // 2,  # backward reads both again, and writes one gradient
    )


CASES = [_case(64, 1024), _case(256, 784), _case(4096, 1024), _case(4096, 1024, torch.bfloat16)]
GPU_CASES = [_case(64, 1024), _case(16384, 4096), _case(16384, 4096, torch.bfloat16)]
TINY_CASES = [_case(5, 37, torch.float16)]
