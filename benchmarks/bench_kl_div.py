"""kl_div against F.kl_div, with probabilities and with their logarithms."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("kl_div",)


def _case(N, C, dtype=torch.float32, log_target=False):
    def inputs(device):
        input, target = (torch.randn(N, C, device=device).log_softmax(1) for _ in range(2))
        return {"input": input.to(dtype), "target": (target if log_target else target.exp()).to(dtype)}

    options = {"reduction": "batchmean", "log_target": log_target}
    nbytes = 2 * N * C * dtype.itemsize
    return Case(
        f"{N}x{C} {str(dtype).removeprefix('torch.')}{' log_target' if log_target else ''}",
        inputs,
        lambda input, target: bigkern.kl_div(input, target, **options),
        lambda input, target: F.kl_div(input, target, **options),
        bytes=nbytes,
        gradients=("input",),
        train_bytes=2 * nbytes,  # backward reads the target, and writes one gradient
    )


CASES = [
    _case(64, 100),
    _case(256, 1000),
    _case(1024, 8000),
    _case(1024, 8000, log_target=True),
    _case(1024, 8000, torch.bfloat16),
]
GPU_CASES = [_case(64, 100), _case(8192, 32000), _case(8192, 32000, torch.bfloat16, log_target=True)]
TINY_CASES = [_case(5, 37, torch.float16)]
