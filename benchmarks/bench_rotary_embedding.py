"""rotary_embedding against the formula in PyTorch's operators, as language models write it."""

import torch

import bigkern
from bigkern.verify_cases.rotary_embedding import rotate_composed

from .common import Case

OPS = ("rotary_embedding",)


def _case(batch, heads, length, head_dim, interleaved=False, dtype=torch.float32):
    def inputs(device):
        angles = torch.rand(length, head_dim // 2, device=device) * 6
        input = torch.randn(batch, heads, length, head_dim, device=device).to(dtype)
        return {"input": input, "cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}

    nbytes = batch * heads * length * head_dim * dtype.itemsize
    return Case(
        f"{batch}x{heads}x{length}x{head_dim} {str(dtype).removeprefix('torch.')}{' interleaved' * interleaved}",
        inputs,
        lambda input, cos, sin: bigkern.rotary_embedding(input, cos, sin, interleaved),
        lambda input, cos, sin: rotate_composed(input, cos, sin, interleaved),
        bytes=2 * nbytes,
        gradients=("input",),
        train_bytes=4 * nbytes,
    )


CASES = [
    _case(1, 32, 1, 128),
    _case(1, 32, 512, 128),
    _case(1, 32, 512, 128, interleaved=True),
    _case(4, 12, 1024, 64),
    _case(1, 32, 512, 128, dtype=torch.bfloat16),
]

GPU_CASES = [
    _case(4, 32, 4096, 128, dtype=torch.bfloat16),
    _case(4, 32, 4096, 128, interleaved=True, dtype=torch.bfloat16),
]
TINY_CASES = [_case(1, 2, 3, 10, dtype=torch.float16)]
