"""distillation_loss against log_softmax, softmax and kl_div, one after the other."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("distillation_loss",)


def _composed(student, teacher, temperature):
    log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def _case(N, C, dtype=torch.float32, temperature=2.0):
    nbytes = 2 * N * C * dtype.itemsize
    return Case(
        f"{N}x{C} {str(dtype).removeprefix('torch.')}",
        lambda device: {name: torch.randn(N, C, device=device).to(dtype) for name in ("student", "teacher")},
        lambda student, teacher: bigkern.distillation_loss(student, teacher, temperature),
        lambda student, teacher: _composed(student, teacher, temperature),
        bytes=nbytes,
        gradients=("student",),
        train_bytes=5 * nbytes // 2,  # backward reads both again, and writes one gradient
    )


CASES = [_case(64, 10), _case(256, 1000), _case(256, 32000), _case(256, 32000, torch.bfloat16)]
GPU_CASES = [
    _case(256, 1000),
    _case(8192, 32000),
    _case(8192, 32000, torch.bfloat16),
    _case(4096, 128256, torch.bfloat16),
]
TINY_CASES = [_case(5, 37, torch.float16)]
