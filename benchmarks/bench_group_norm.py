"""group_norm against F.group_norm, at the sizes of diffusion and detection networks."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("group_norm",)


def _case(shape, num_groups=32, dtype=torch.float32):
    def inputs(device):
        drawn = {"input": torch.randn(shape, device=device).to(dtype)}
        return drawn | {name: torch.randn(shape[1], device=device).to(dtype) for name in ("weight", "bias")}

    nbytes = torch.Size(shape).numel() * dtype.itemsize
    return Case(
        f"{'x'.join(map(str, shape))} in {num_groups} {str(dtype).removeprefix('torch.')}",
        inputs,
        lambda input, weight, bias: bigkern.group_norm(input, num_groups, weight, bias),
        lambda input, weight, bias: F.group_norm(input, num_groups, weight, bias),
        bytes=2 * nbytes,
        gradients=("input", "weight", "bias"),
        train_bytes=5 * nbytes,  # forward reads and writes; backward reads two and writes one
    )


CASES = [
    _case((4, 320, 64, 64)),
    _case((4, 1280, 8, 8)),
    _case((8, 256, 56, 56)),
    _case((4, 320, 64, 64), dtype=torch.bfloat16),
    _case((1, 32, 8, 8), 8),
]
GPU_CASES = [
    _case((16, 320, 64, 64), dtype=torch.bfloat16),
    _case((16, 1280, 16, 16), dtype=torch.bfloat16),
    _case((16, 512, 128, 128), dtype=torch.bfloat16),
]
TINY_CASES = [_case((2, 4, 5, 5), 2, torch.float16)]
