"""linear_cross_entropy against F.cross_entropy(F.linear(...)), whose logits are rows x classes numbers."""

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case

OPS = ("linear_cross_entropy",)


def _case(N, K, C, dtype=torch.float32, target="", **options):
    def inputs(device):
        return {
            "input": torch.randn(N, K, device=device).to(dtype),
            "linear_weight": (torch.randn(C, K, device=device) / K**0.5).to(dtype),
            "target": torch.randint(0, C, (N,), device=device),
        }

    dtype_name = str(dtype).removeprefix("torch.")
    flops, nbytes = 2 * N * K * C, (N * K + C * K) * dtype.itemsize
    suffix = "".join(f" {name} {value}" for name, value in options.items())
    return Case(
        f"{N}x{K}x{C} {dtype_name}{suffix}",
        inputs,
        lambda input, linear_weight, target: bigkern.linear_cross_entropy(input, linear_weight, target, **options),
        lambda input, linear_weight, target: F.cross_entropy(F.linear(input, linear_weight), target, **options),
        peers={} if options else peers.linear_cross_entropy(),
        flops=flops,
        bytes=nbytes,
        peak=dtype_name,
        gradients=("input", "linear_weight"),
        train_flops=3 * flops,
        train_bytes=3 * nbytes,
        target=target,
    )


CASES = [
    _case(32, 128, 1000),
    _case(512, 512, 10000),
    _case(1024, 768, 32000),
    _case(512, 512, 10000, label_smoothing=0.1),
    _case(1024, 768, 32000, torch.bfloat16),
]

_H100_TARGET = "700 TFLOP/s, memory of a tile (H100: Liger's CuTe kernel 718 forward, 698 forward and backward)"

GPU_CASES = [
    _case(8192, 4096, 131072, torch.bfloat16, target=_H100_TARGET),
    _case(8192, 4096, 32000, torch.bfloat16),
    _case(4096, 768, 50257, torch.bfloat16),
    _case(8192, 4096, 32000, torch.bfloat16, label_smoothing=0.1),
    _case(2048, 1024, 32000),
]
TINY_CASES = [_case(5, 16, 37, torch.float16)]
