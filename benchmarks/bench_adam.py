"""One step of AdamW against torch.optim's default, foreach and fused."""

import torch

from .optimizers import LISTS, MLP_SHAPES, optimizer_case, optimizer_cases

OPS = ("adam", "grad_norm")
# Read parameter, gradient and two averages; write parameter and averages.
PASSES = 7
OPTIONS = {"lr": 1e-6}
RESNET = "ResNet-50, 161 tensors"

CASES = [
    *optimizer_cases("AdamW", PASSES, **OPTIONS),
    optimizer_case(RESNET, "AdamW", LISTS[RESNET], PASSES, torch.bfloat16, **OPTIONS),
    optimizer_case(f"{RESNET}, clipped", "AdamW", LISTS[RESNET], PASSES, clip=1.0, **OPTIONS),
]
TINY_CASES = [optimizer_case("MLP, 4 tensors", "AdamW", MLP_SHAPES, PASSES, **OPTIONS)]
