"""conv2d against PyTorch's (oneDNN on a CPU, cuDNN on a GPU), in the shapes of residual and mobile networks."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("conv2d",)


def _case(N, C, H, out_channels, kernel, stride=1, groups=1, dtype=torch.float32, channels_last=False, train=True):
    """relu(conv2d) of square images and kernels, with the padding that keeps the size."""
    padding = kernel // 2
    size = (H + 2 * padding - kernel) // stride + 1

    def inputs(device):
        shapes = {"input": (N, C, H, H), "weight": (out_channels, C // groups, kernel, kernel)}
        drawn = {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}
        drawn["weight"] /= (kernel * kernel * C / groups) ** 0.5
        if channels_last:
            drawn = {name: t.contiguous(memory_format=torch.channels_last) for name, t in drawn.items()}
        return {**drawn, "bias": torch.randn(out_channels, device=device).to(dtype)}

    dtype_name = str(dtype).removeprefix("torch.")
    flops = 2 * N * out_channels * size**2 * kernel**2 * C / groups
    nbytes = dtype.itemsize * (N * C * H**2 + N * out_channels * size**2 + out_channels * C // groups * kernel**2)
    kind = "depthwise" if groups == C else f"{groups} groups" if groups > 1 else ""
    words = (f"{N}x{C}x{H}x{H} to {out_channels}, {kernel}x{kernel}", f"stride {stride}" if stride > 1 else "", kind)
    return Case(
        " ".join(filter(None, (*words, "channels_last" if channels_last else "", dtype_name))),
        inputs,
        lambda input, weight, bias: bigkern.conv2d_act(input, weight, bias, stride, padding, 1, groups),
        lambda input, weight, bias: F.relu(F.conv2d(input, weight, bias, stride, padding, 1, groups)),
        flops=flops,
        bytes=nbytes,
        peak=dtype_name,
        gradients=("input", "weight", "bias") if train else (),
        train_flops=3 * flops,
        train_bytes=3 * nbytes,
    )


CASES = [
    _case(8, 64, 56, 64, 3),
    _case(8, 256, 14, 256, 3, channels_last=True),
    _case(8, 256, 56, 64, 1),
    _case(4, 3, 224, 64, 7, 2, train=False),
    _case(8, 96, 56, 96, 3, groups=96),
    _case(8, 240, 28, 240, 5, 2, groups=240, channels_last=True),
    _case(8, 64, 56, 64, 3, dtype=torch.bfloat16, channels_last=True),
    _case(2, 64, 56, 64, 3, dtype=torch.float16),
    _case(2, 256, 14, 256, 3, dtype=torch.float16, channels_last=True),
    _case(2, 96, 56, 96, 3, groups=96, dtype=torch.float16, channels_last=True),
    _case(2, 64, 56, 64, 3, dtype=torch.float64),
]
GPU_CASES = [
    *(
        _case(64, *shape, dtype=torch.bfloat16, channels_last=True)
        for shape in ((64, 56, 64, 3), (128, 28, 128, 3), (256, 14, 256, 3), (512, 7, 512, 3), (256, 56, 64, 1))
    ),
    _case(64, 64, 56, 64, 3, dtype=torch.bfloat16),
    _case(64, 128, 56, 128, 3, 2, dtype=torch.float16, channels_last=True),
    _case(64, 3, 224, 64, 7, 2, dtype=torch.bfloat16, channels_last=True, train=False),
    _case(64, 96, 56, 96, 3, groups=96, dtype=torch.bfloat16, channels_last=True),
    _case(64, 64, 56, 64, 3, channels_last=True),
]
TINY_CASES = [_case(1, 5, 7, 6, 3, dtype=torch.float16)]
