"""linear_act against F.linear and the activation, in the shapes of perceptrons and transformers."""

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case

OPS = ("linear_act",)
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def _case(M, K, N, activation, dtype=torch.float32, train=True, target=""):
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
        peers=peers.linear_act(activation),
        flops=flops,
        bytes=elements * dtype.itemsize,
        peak=dtype_name,
        gradients=("input", "weight", "bias") if train else (),
        train_flops=3 * flops,
        train_bytes=3 * elements * dtype.itemsize,
        target=target,
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

_LIBRARY_TARGET = "1.0x of cuBLASLt's epilogue or better"

GPU_CASES = [
    _case(1024, 1024, 1024, "relu", torch.bfloat16, target=_LIBRARY_TARGET),
    _case(2048, 2048, 2048, "relu", torch.bfloat16, target=_LIBRARY_TARGET),
    _case(4096, 4096, 4096, "relu", torch.bfloat16, target=_LIBRARY_TARGET),
    _case(8192, 8192, 8192, "relu", torch.bfloat16, target=f"{_LIBRARY_TARGET}; H100: ThunderKittens 855 TFLOP/s"),
    _case(16384, 16384, 16384, "relu", torch.bfloat16, train=False, target=_LIBRARY_TARGET),
    _case(8192, 4096, 14336, "silu", torch.bfloat16),
    _case(4096, 1024, 4096, "gelu_tanh", torch.bfloat16, target=_LIBRARY_TARGET),
    _case(4095, 8191, 4097, "relu", torch.bfloat16, target="ahead of cuBLASLt's epilogue"),
    _case(1, 8192, 8192, "silu", torch.bfloat16, train=False),
    _case(16, 8192, 8192, "relu", torch.bfloat16, train=False),
    _case(4096, 4096, 4096, "relu", torch.float16),
    _case(2048, 2048, 2048, "relu"),
]
TINY_CASES = [_case(33, 40, 50, "relu", torch.float16)]
