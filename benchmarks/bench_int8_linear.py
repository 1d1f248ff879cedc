"""int8_linear against what it replaces, F.linear in float32, and PyTorch's own ways to int8."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case, device_here

OPS = ("int8_linear",)


def _composed(input, qweight, weight_scale, bias):
    row_scale = input.abs().amax(1, keepdim=True) / 127
    qinput = torch.round(input / row_scale).to(torch.int8)
    return torch._int_mm(qinput, qweight.T) * row_scale * weight_scale + bias


def _dynamic_linear(weight, bias):
    """PyTorch's quantized module with its weight packed ahead, or None where this build has no engine for it."""
    if "x86" not in torch.backends.quantized.supported_engines:
        return None
    module = torch.ao.nn.quantized.dynamic.Linear(weight.shape[1], weight.shape[0])
    module.set_weight_bias(torch.quantize_per_tensor(weight, weight.abs().amax() / 127, 0, torch.qint8), bias)
    return module


def _case(M, K, N):
    def inputs(device):
        weight, bias = torch.randn(N, K, device=device) / K**0.5, torch.randn(N, device=device)
        qweight, weight_scale, _ = bigkern.quantize(weight, axis=0)
        made = {"input": torch.randn(M, K, device=device), "weight": weight, "bias": bias}
        packed = _dynamic_linear(weight, bias) if device == "cpu" else None
        return {**made, "qweight": qweight, "weight_scale": weight_scale, "dynamic": packed}

    on_cpu, peers = device_here() == "cpu", {}
    if on_cpu or M > 16:  # what torch._int_mm asks of a GPU
        peers["_int_mm"] = _composed
    if on_cpu and "x86" in torch.backends.quantized.supported_engines:
        peers["dynamic.Linear"] = lambda input, dynamic: dynamic(input)
    return Case(
        f"{M}x{K}x{N}",
        inputs,
        lambda input, qweight, weight_scale, bias: bigkern.int8_linear(input, qweight, weight_scale, bias),
        lambda input, weight, bias: F.linear(input, weight, bias),
        peers=peers,
        flops=2 * M * N * K,
        bytes=4 * M * K + N * K + 4 * M * N,
        peak="int8",
        agreement=0.1,  # eager does not quantize
    )


CASES = [_case(M, K, N) for K, N in ((1024, 1024), (768, 3072)) for M in (1, 32, 512)]
