"""batch_norm_act against F.batch_norm, addition and F.relu, at the sizes of a residual network's layers."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("batch_norm_act",)


def _case(shape, training=True, residual=False, dtype=torch.float32, channels_last=False):
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}

    def inputs(device):
        drawn = {name: torch.randn(shape, device=device).to(dtype).to(**layout) for name in ("input", "residual")}
        drawn |= {name: torch.rand(shape[1], device=device) + 0.5 for name in ("weight", "bias", "mean", "var")}
        return drawn if residual else {**drawn, "residual": None}

    def ours(input, mean, var, weight, bias, residual):
        return bigkern.batch_norm_act(input, mean, var, weight, bias, training, 0.1, 1e-5, residual, "relu")

    def eager(input, mean, var, weight, bias, residual):
        output = F.batch_norm(input, mean, var, weight, bias, training)
        return F.relu(output if residual is None else output + residual)

    nbytes = torch.Size(shape).numel() * dtype.itemsize
    forward = 2 + training + residual
    name = "x".join(map(str, shape))
    words = ["training" if training else "inference", *["residual"] * residual, *["channels_last"] * channels_last]
    return Case(
        f"{name} {' '.join(words)} {str(dtype).removeprefix('torch.')}",
        inputs,
        ours,
        eager,
        bytes=forward * nbytes,
        gradients=("input", "weight", "bias", *["residual"] * residual) if training else (),
        # backward: grad_output, input and output are read twice, grad_input and grad_residual written
        train_bytes=(forward + 7 + residual) * nbytes,
    )


CASES = [
    _case((32, 64, 56, 56)),
    _case((32, 64, 56, 56), residual=True),
    _case((32, 64, 56, 56), residual=True, channels_last=True),
    _case((32, 512, 7, 7), residual=True),
    _case((32, 64, 56, 56), training=False, residual=True),
    _case((32, 64, 56, 56), residual=True, dtype=torch.bfloat16),
    _case((4096, 1024)),
    _case((2, 8, 4, 4)),
]
GPU_CASES = [
    _case((256, 64, 56, 56), residual=True, dtype=torch.bfloat16),
    _case((256, 64, 56, 56), residual=True, dtype=torch.bfloat16, channels_last=True),
    _case((256, 512, 7, 7), residual=True, dtype=torch.bfloat16, channels_last=True),
    _case((256, 64, 56, 56), training=False, residual=True, dtype=torch.bfloat16),
]
TINY_CASES = [_case((2, 3, 5, 5), residual=True, dtype=torch.float16)]
