"""conv_transpose2d against PyTorch's, in the shapes of a GAN's generator and an autoencoder."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("conv_transpose2d",)


def _case(N, C, H, out_channels, kernel=4, stride=2, padding=1, dtype=torch.float32, channels_last=False):
    size = (H - 1) * stride - 2 * padding + kernel

    def inputs(device):
        shapes = {"input": (N, C, H, H), "weight": (C, out_channels, kernel, kernel)}
        drawn = {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}
        drawn["weight"] /= (kernel * kernel * C / stride**2) ** 0.5
        if channels_last:
            drawn = {name: t.contiguous(memory_format=torch.channels_last) for name, t in drawn.items()}
        return {**drawn, "bias": torch.randn(out_channels, device=device).to(dtype)}

    dtype_name = str(dtype).removeprefix("torch.")
    flops = 2 * N * C * H**2 * kernel**2 * out_channels
    nbytes = dtype.itemsize * (N * C * H**2 + N * out_channels * size**2 + out_channels * C * kernel**2)
    words = (f"{N}x{C}x{H}x{H} to {out_channels}, {kernel}x{kernel} stride {stride}",)
    return Case(
        " ".join(filter(None, (*words, "channels_last" if channels_last else "", dtype_name))),
        inputs,
        lambda input, weight, bias: bigkern.conv_transpose2d(input, weight, bias, stride, padding),
        lambda input, weight, bias: F.conv_transpose2d(input, weight, bias, stride, padding),
        flops=flops,
        bytes=nbytes,
        peak=dtype_name,
        gradients=("input", "weight", "bias"),
        train_flops=3 * flops,
        train_bytes=3 * nbytes,
    )


CASES = [
    _case(16, 128, 7, 64),
    _case(16, 64, 14, 1),
    _case(8, 256, 8, 128, channels_last=True),
    _case(8, 256, 8, 128, dtype=torch.bfloat16),
    _case(4, 256, 8, 128, dtype=torch.float16),
    _case(4, 64, 16, 32, dtype=torch.float16, channels_last=True),
]
GPU_CASES = [
    _case(64, 512, 4, 256, dtype=torch.bfloat16, channels_last=True),
    _case(64, 256, 8, 128, dtype=torch.bfloat16, channels_last=True),
    _case(64, 128, 16, 64, dtype=torch.bfloat16),
    _case(64, 64, 32, 3, dtype=torch.bfloat16, channels_last=True),
    _case(64, 128, 16, 64),
]
TINY_CASES = [_case(1, 3, 4, 5, dtype=torch.float16)]
