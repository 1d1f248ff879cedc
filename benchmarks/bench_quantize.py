"""quantize against the formula in PyTorch; torch.quantize_per_channel is given the scales."""

import torch

import bigkern

from . import peers
from .common import Case

OPS = ("quantize",)


def _composed(dims, symmetric):
    def quantize(input):
        if symmetric:
            scale = input.abs().amax(dims, keepdim=True) / 127
            return torch.round(input / scale).clamp(-127, 127).to(torch.int8), scale
        lo, hi = input.amin(dims, keepdim=True).clamp(max=0), input.amax(dims, keepdim=True).clamp(min=0)
        scale = (hi - lo) / 255
        zero_point = torch.round(-128 - lo / scale).clamp(-128, 127)
        return (torch.round(input / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale

    return quantize


def _case(rows, columns, axis, symmetric=True, dtype=torch.float32, target=""):
    def inputs(device):
        input = torch.randn(rows, columns, device=device).to(dtype)
        scale = input.float().abs().amax(1) / 127
        return {"input": input, "scale": scale, "zero_points": torch.zeros(rows, dtype=torch.int32, device=device)}

    # PyTorch's own operator does less: it is given the scales.
    library = lambda input, scale, zero_points: torch.quantize_per_channel(input, scale, zero_points, 0, torch.qint8)  # noqa: E731
    name = f"{rows}x{columns} {'per tensor' if axis is None else 'per row'}{'' if symmetric else ', affine'}"
    own = {"quantize_per_channel": library} if axis == 0 and symmetric and dtype == torch.float32 else {}
    others = peers.quantize() if axis == 0 and symmetric and dtype == torch.float16 else {}
    return Case(
        f"{name} {str(dtype).removeprefix('torch.')}",
        inputs,
        lambda input: bigkern.quantize(input, axis=axis, symmetric=symmetric),
        _composed((0, 1) if axis is None else 1, symmetric),
        peers=own | others,
        bytes=rows * columns * (dtype.itemsize + 1),
        target=target,
    )


CASES = [
    _case(1024, 1024, 0),
    _case(1024, 1024, None),
    _case(1024, 1024, 0, symmetric=False),
    _case(4096, 4096, 0),
    _case(4096, 4096, None),
    _case(4096, 4096, 0, symmetric=False),
    _case(4096, 4096, 0, dtype=torch.bfloat16),
]

_TARGET = "90% of the copy rate"

GPU_CASES = [
    _case(8192, 4096, 0, dtype=torch.bfloat16, target=_TARGET),
    _case(8192, 4096, 0, dtype=torch.float16, target=_TARGET),
    _case(8192, 16384, 0, dtype=torch.bfloat16, target=_TARGET),
    _case(8192, 8192, None, dtype=torch.bfloat16),
    _case(8192, 8192, 0, symmetric=False, dtype=torch.bfloat16, target=_TARGET),
    _case(4096, 4096, 0),
    _case(4095, 4097, 0, dtype=torch.bfloat16),
]
TINY_CASES = [_case(5, 37, 0, dtype=torch.float16)]
