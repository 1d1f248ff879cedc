"""weight_only_linear against the floating layer that it replaces, and PyTorch's own kernels for such weights."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case, device_here

OPS = ("weight_only_linear",)


def _case(bits, M, K, N, dtype=torch.bfloat16, group_size=None, target=""):
    others = {}
    # The schemes that PyTorch's CPU kernels know, from weights packed for them ahead of time.
    if device_here() == "cpu" and dtype == torch.bfloat16:
        if bits == 8 and group_size is None:
            others["_weight_int8pack_mm"] = lambda input, qweight, row_scale: torch._weight_int8pack_mm(
                input, qweight, row_scale
            )
        if bits == 4 and group_size is not None:
            others["_weight_int4pack_mm"] = lambda input, int4_packed, int4_scales: (
                torch.ops.aten._weight_int4pack_mm_for_cpu(input, int4_packed, group_size, int4_scales)
            )

    def inputs(device):
        weight = (torch.randn(N, K, device=device) / K**0.5).to(dtype)
        qweight, weight_scale, _ = bigkern.quantize_weight(weight, bits, group_size)
        made = {"input": torch.randn(M, K, device=device).to(dtype), "weight": weight}
        made |= {"qweight": qweight, "weight_scale": weight_scale, "row_scale": weight_scale[:, 0].to(dtype)}
        if "_weight_int4pack_mm" in others:
            values = torch.stack((qweight & 15, qweight >> 4), 2).reshape(N, K).to(torch.int32)
            made["int4_packed"] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
            zeros = torch.zeros_like(weight_scale)
            made["int4_scales"] = torch.stack((weight_scale, zeros), 2).transpose(0, 1).contiguous().to(dtype)
        return made

    return Case(
        f"int{bits} {M}x{K}x{N}"
        + (f", groups of {group_size}" if group_size else "")
        + ("" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"),
        inputs,
        lambda input, qweight, weight_scale: bigkern.weight_only_linear(input, qweight, weight_scale),
        lambda input, weight: F.linear(input, weight),
        peers=others,
        flops=2 * M * N * K,
        bytes=dtype.itemsize * M * (K + N) + N * K * bits // 8,
        peak=str(dtype).removeprefix("torch."),
        agreement=0.5 if bits == 4 else 0.05,  # eager does not quantize
        target=target,
    )


CASES = [
    _case(8, 1, 4096, 4096),
    _case(4, 1, 4096, 4096, group_size=128),
    _case(8, 1, 4096, 4096, torch.float32),
    _case(4, 1, 4096, 4096, torch.float32, 32),
    _case(4, 8, 1024, 4096, group_size=128),
    _case(4, 256, 1024, 4096, group_size=128),
]
_TARGET = "the time of reading the weights"
GPU_CASES = [_case(bits, M, 4096, 14336, group_size=128, target=_TARGET) for bits in (8, 4) for M in (1, 16, 512)]
TINY_CASES = [_case(4, 3, 64, 24, torch.float16, 32), _case(8, 3, 64, 24, torch.float16)]
