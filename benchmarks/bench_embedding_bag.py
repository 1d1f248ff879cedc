"""embedding_bag against F.embedding_bag: bags of recommenders, of one length and of many."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("embedding_bag",)


def _case(bags, length, rows, columns, mode="sum", weighted=False, dtype=torch.float32):
    """Bags of `length` rows on average."""

    def inputs(device):
        ends = torch.randint(0, bags * length, (bags - 1,), device=device).sort().values
        drawn = {
            "input": torch.randint(0, rows, (bags * length,), device=device),
            "weight": torch.randn(rows, columns, device=device).to(dtype),
            "offsets": torch.cat([ends.new_zeros(1), ends]),
        }
        if weighted:
            drawn["per_sample_weights"] = torch.rand(bags * length, device=device).to(dtype)
        return drawn

    def ours(input, weight, offsets, per_sample_weights=None):
        return bigkern.embedding_bag(input, weight, offsets, mode=mode, per_sample_weights=per_sample_weights)

    def theirs(input, weight, offsets, per_sample_weights=None):
        return F.embedding_bag(input, weight, offsets, mode=mode, per_sample_weights=per_sample_weights)

    row = columns * dtype.itemsize
    forward = bags * (length + 1) * row + 8 * bags * (length + 1)
    return Case(
        f"{mode} of {bags}x{length} of {rows}x{columns} {str(dtype).removeprefix('torch.')}"
        + (", weighted" if weighted else ""),
        inputs,
        ours,
        theirs,
        bytes=forward,
        gradients=("weight",),
        train_bytes=2 * forward + rows * row,
    )


CASES = [
    _case(2048, 20, 100000, 64),
    _case(2048, 20, 100000, 64, "mean"),
    _case(2048, 20, 100000, 64, "max"),
    _case(2048, 20, 100000, 128, weighted=True),
    _case(512, 50, 30000, 768, "mean"),
    _case(2048, 20, 100000, 64, dtype=torch.bfloat16),
]

GPU_CASES = [
    _case(65536, 20, 1 << 20, 128),
    _case(65536, 20, 1 << 20, 128, "mean", dtype=torch.bfloat16),
    _case(65536, 20, 1 << 20, 128, weighted=True),
    _case(16384, 20, 1 << 20, 128, "max"),
]
TINY_CASES = [_case(5, 3, 7, 37, dtype=torch.float16)]
