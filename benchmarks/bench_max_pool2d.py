"""max_pool2d against F.max_pool2d, at the sizes of convolutional networks."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("max_pool2d",)


def _case(shape, *windows, dtype=torch.float32, channels_last=False):
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    pooled = F.max_pool2d(torch.empty(shape, device="meta"), *windows).numel()
    nbytes = torch.Size(shape).numel() * dtype.itemsize + pooled * (dtype.itemsize + 4)
    words = ["channels_last"] * channels_last + [str(dtype).removeprefix("torch.")]
    return Case(
        f"{'x'.join(map(str, shape))} windows {' '.join(map(str, windows))} {' '.join(words)}",
        lambda device: {"input": torch.randn(shape, device=device).to(dtype).to(**layout)},
        lambda input: bigkern.max_pool2d(input, *windows),
        lambda input: F.max_pool2d(input, *windows),
        bytes=nbytes,
        gradients=("input",),
        train_bytes=2 * nbytes,
    )


CASES = [
    _case((16, 64, 112, 112), 3, 2, 1),
    _case((16, 64, 112, 112), 3, 2, 1, channels_last=True),
    _case((16, 64, 112, 112), 3, 2, 1, dtype=torch.bfloat16),
    _case((32, 32, 28, 28), 2),
    _case((8, 6, 28, 28), 2),
]
GPU_CASES = [
    _case((256, 64, 112, 112), 3, 2, 1, dtype=torch.bfloat16),
    _case((256, 64, 112, 112), 3, 2, 1, dtype=torch.bfloat16, channels_last=True),
]
TINY_CASES = [_case((2, 3, 7, 7), 3, 2, 1, dtype=torch.float16)]
