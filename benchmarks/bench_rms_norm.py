"""rms_norm against F.rms_norm, from BERT's rows to rows of 65536 columns."""

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case

OPS = ("rms_norm",)


def _case(rows, columns, dtype=torch.float32, target=""):
    def inputs(device):
        drawn = {"input": torch.randn(rows, columns, device=device).to(dtype)}
        return {**drawn, **{name: torch.randn(columns, device=device).to(dtype) for name in ("weight",)}}

    nbytes = rows * columns * dtype.itemsize
    return Case(
        f"{rows}x{columns} {str(dtype).removeprefix('torch.')}",
        inputs,
        lambda input, weight: bigkern.rms_norm(input, (columns,), weight),
        lambda input, weight: F.rms_norm(input, (columns,), weight),
        peers=peers.rms_norm(),
        bytes=2 * nbytes,
        gradients=("input", "weight"),
        train_bytes=5 * nbytes,  # forward reads and writes; backward reads two and writes one
        target=target,
    )


CASES = [
    _case(128, 64),
    _case(4096, 768),
    _case(4096, 1024),
    _case(512, 4096),
    _case(64, 65536),
    _case(4096, 1024, torch.bfloat16),
    _case(64, 65536, torch.bfloat16),
]

_WIDE_TARGET = "90% of the copy rate, flat in the width (QuACK on H100: about 3.0 of 3.35 TB/s)"

GPU_CASES = [
    _case(4096, 1024, torch.bfloat16),
    _case(32768, 1024, torch.bfloat16, _WIDE_TARGET),
    _case(16384, 4096, torch.bfloat16, _WIDE_TARGET),
    _case(8192, 16384, torch.bfloat16, _WIDE_TARGET),
    _case(2048, 65536, torch.bfloat16, _WIDE_TARGET),
    _case(8192, 4096),
]
TINY_CASES = [_case(5, 37, torch.float16)]
