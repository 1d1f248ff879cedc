"""Cases of conv2d and conv_transpose2d."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _convolution(op, name, image, weight, bias=True, channels_last=False, relu=False, **options):
    """image: [N, C, H, W]; weight: its shape, scaled so that outputs are about 1."""
    transposed = op == "conv_transpose2d"
    out_channels = weight[1] * options.get("groups", 1) if transposed else weight[0]
    depth = weight[2] * weight[3] * (weight[0] // options.get("groups", 1) if transposed else weight[1])

    def inputs():
        drawn = {"input": torch.randn(image), "weight": torch.randn(weight) / depth**0.5}
        if channels_last:
            drawn = {name: t.contiguous(memory_format=torch.channels_last) for name, t in drawn.items()}
        return {**drawn, "bias": torch.randn(out_channels)} if bias else drawn

    ours, theirs = getattr(bigkern, op), getattr(F, op)
    return Case(
        op,
        name + (", channels_last" if channels_last else ""),
        inputs,
        (lambda **tensors: bigkern.conv2d_act(**tensors, **options))
        if relu
        else (lambda **tensors: ours(**tensors, **options)),
        (lambda **tensors: F.relu(theirs(**tensors, **options)))
        if relu
        else (lambda **tensors: theirs(**tensors, **options)),
        # Of relu the values alone: a sum that rounds to the other side of zero decides about a whole gradient.
        () if relu else ("input", "weight", "bias") if bias else ("input", "weight"),
    )


CONV2D = [
    _convolution("conv2d", "3x3", (2, 5, 9, 11), (7, 5, 3, 3), padding=1),
    _convolution("conv2d", "3x3", (2, 5, 9, 11), (7, 5, 3, 3), padding=1, channels_last=True),
    _convolution("conv2d", "3x3 relu", (2, 5, 9, 11), (7, 5, 3, 3), padding=1, relu=True),
    _convolution("conv2d", "1x1, no bias", (2, 33, 5, 7), (17, 33, 1, 1), bias=False),
    _convolution("conv2d", "5x3 stride 2x3", (1, 3, 17, 13), (6, 3, 5, 3), stride=(2, 3), padding=2),
    _convolution("conv2d", "3x3 dilation 2, 2 groups", (1, 6, 11, 9), (4, 3, 3, 3), dilation=2, groups=2),
    _convolution("conv2d", "depthwise 3x3", (2, 19, 8, 10), (19, 1, 3, 3), padding=1, groups=19),
    _convolution(
        "conv2d", "depthwise 3x3 stride 2", (2, 19, 8, 10), (19, 1, 3, 3), stride=2, groups=19, channels_last=True
    ),
]
CONV_TRANSPOSE2D = [
    _convolution("conv_transpose2d", "4x4 stride 2", (2, 9, 5, 6), (9, 5, 4, 4), stride=2, padding=1),
    _convolution(
        "conv_transpose2d", "4x4 stride 2", (2, 9, 5, 6), (9, 5, 4, 4), stride=2, padding=1, channels_last=True
    ),
    _convolution("conv_transpose2d", "3x3 stride 3, 2 groups", (1, 4, 3, 5), (4, 3, 3, 3), stride=3, groups=2),
    _convolution("conv_transpose2d", "1x1, no bias", (2, 7, 5, 3), (7, 6, 1, 1), bias=False),
]
