"""cross_entropy against F.cross_entropy, from ten classes to a language model's vocabulary."""

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case

OPS = ("cross_entropy",)


def _case(N, C, dtype=torch.float32, target="", **options):
    def inputs(device):
        return {
            "input": torch.randn(N, C, device=device).to(dtype),
            "target": torch.randint(0, C, (N,), device=device),
        }

    nbytes = N * C * dtype.itemsize
    suffix = "".join(f" {name} {value}" for name, value in options.items())
    return Case(
        f"{N}x{C} {str(dtype).removeprefix('torch.')}{suffix}",
        inputs,
        lambda input, target: bigkern.cross_entropy(input, target, **options),
        lambda input, target: F.cross_entropy(input, target, **options),
        peers={} if options else peers.cross_entropy(),
        bytes=nbytes,
        gradients=("input",),
        train_bytes=3 * nbytes,  # forward reads; backward reads and writes
        target=target,
    )


CASES = [
    _case(32, 10),
    _case(1024, 1000),
    _case(1024, 32000),
    _case(64, 128256),
    _case(64, 128256, torch.bfloat16),
    _case(1024, 1000, label_smoothing=0.1),
]

_WIDE_TARGET = "90% of the copy rate, flat in the width (QuACK on H100: about 3.0 of 3.35 TB/s)"

GPU_CASES = [
    _case(32, 10),
    _case(8192, 1000, torch.bfloat16),
    _case(32768, 4096, torch.bfloat16, target=_WIDE_TARGET),
    _case(8192, 32000, torch.bfloat16, target=_WIDE_TARGET),
    _case(8192, 32000, target=_WIDE_TARGET),
    _case(4096, 128256, torch.bfloat16, target=_WIDE_TARGET),
    _case(2048, 262144, torch.bfloat16, target=_WIDE_TARGET),
    _case(64, 128256, torch.bfloat16),
    _case(8192, 50257, torch.bfloat16),
    _case(8192, 32000, torch.bfloat16, label_smoothing=0.1),
]
TINY_CASES = [_case(5, 37, torch.float16)]
