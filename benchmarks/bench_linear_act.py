"""linear_act against F.linear and the activation, in the shapes of perceptrons and transformers."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("linear_act",)
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def _case(M, K, N, activation, dtype=torch.float32, train=True):
    def inputs(device):
        shapes = {"input": (M, K), "weight": (N, K), "bias": (N,)}
        return {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}

    function = ACTIVATIONS[activation]
    dtype_name = str(dtype).removeprefix("torch.")
    flops, elements = 2 * M * N * K, M * K + N * K + M * N
    return Case(
        f"{M}x{K}x{N} {activation} {dtype_name}",
        inputs,
        lambda input, weight, bias: bigkern.linear_act(input, weight, bias, activation),
        lambda input, weight, bias: function(F.linear(input, weight, bias)),
        flops=flops,
        bytes=elements * dtype.itemsize,
        peak=dtype_name,
        gradients=("input", "weight", "bias") if train else (),
        train_flops=3 * flops,
        train_bytes=3 * elements * dtype.itemsize,
    )


CASES = [
    _case(32, 784, 64, "relu"),
    _case(256, 1024, 1024, "relu"),
    _case(512, 768, 3072, "gelu"),
    _case(1, 4096, 4096, "silu", train=False),
    _case(1024, 1024, 1024, "relu"),
    _case(333, 777, 555, "gelu"),
    _case(512, 768, 3072, "gelu", torch.bfloat16),
    _case(1, 4096, 4096, "silu", torch.bfloat16, train=False),
]
