"""int8_linear against what it replaces, F.linear in the input's dtype, and PyTorch's own ways to int8."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case, device_here

OPS = ("int8_linear",)


def _composed(input, qweight, weight_scale, bias):
    row_scale = input.abs().amax(1, keepdim=True) / 127
    qinput = torch.round(input / row_scale).to(torch.int8)
    return (torch._int_mm(qinput, qweight.T) * row_scale * weight_scale + bias).to(input.dtype)


def _dynamic_linear(weight, bias):
    """PyTorch's quantized module with its weight packed ahead, or None where this build has no engine for it."""
    if "x86" not in torch.backends.quantized.supported_engines:
        return None
    module = torch.ao.nn.quantized.dynamic.Linear(weight.shape[1], weight.shape[0])
    module.set_weight_bias(torch.quantize_per_tensor(weight, weight.abs().amax() / 127, 0, torch.qint8), bias)
    return module


def _case(M, K, N, dtype=torch.float32, target=""):
    on_cpu, others = device_here() == "cpu", {}
    if on_cpu or M > 16:  # what torch._int_mm asks of a GPU
        others["_int_mm"] = _composed
    if on_cpu and dtype == torch.float32 and "x86" in torch.backends.quantized.supported_engines:
        others["dynamic.Linear"] = lambda input, dynamic: dynamic(input)
    if not on_cpu and find_spec("torchao"):
        others["torchao"] = lambda input, dynamic: dynamic(input)

    def inputs(device):
        weight, bias = ((torch.randn(shape, device=device) / K**0.5).to(dtype) for shape in ((N, K), (N,)))
        qweight, weight_scale, _ = bigkern.quantize(weight, axis=0)
        made = {"input": torch.randn(M, K, device=device).to(dtype), "weight": weight, "bias": bias}
        packed = None
        if "dynamic.Linear" in others:
            packed = _dynamic_linear(weight, bias)
        elif "torchao" in others:
            packed = peers.int8_module(weight, bias)
        return {**made, "qweight": qweight, "weight_scale": weight_scale, "dynamic": packed}

    return Case(
        f"{M}x{K}x{N}" + ("" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"),
        inputs,
        lambda input, qweight, weight_scale, bias: bigkern.int8_linear(input, qweight, weight_scale, bias),
        lambda input, weight, bias: F.linear(input, weight, bias),
        peers=others,
        flops=2 * M * N * K,
        bytes=dtype.itemsize * M * (K + N) + N * K,
        peak="int8",
        agreement=0.1,  # eager does not quantize
        target=target,
    )


CASES = [_case(M, K, N) for K, N in ((1024, 1024), (768, 3072)) for M in (1, 32, 512)]

_TARGET = "ahead of torchao and of cuBLAS in bfloat16"

GPU_CASES = [
    *(_case(M, 4096, 4096, torch.bfloat16, _TARGET) for M in (1, 16, 512, 8192)),
    _case(8192, 8192, 8192, torch.bfloat16, _TARGET),
    _case(4096, 4096, 14336, torch.bfloat16, _TARGET),
    _case(4095, 4097, 4099, torch.bfloat16),
]
TINY_CASES = [_case(18, 40, 24, torch.float16)]
