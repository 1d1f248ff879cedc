"""One step of SGD with momentum against torch.optim's default, foreach and fused."""

import torch

from .optimizers import LISTS, MLP_SHAPES, optimizer_case, optimizer_cases

OPS = ("sgd", "grad_norm")
# Read parameter, gradient and momentum; write parameter and momentum.
PASSES = 5
OPTIONS = {"lr": 1e-6, "momentum": 0.9}
RESNET = "ResNet-50, 161 tensors"

CASES = [
    *optimizer_cases("SGD", PASSES, **OPTIONS),
    optimizer_case(RESNET, "SGD", LISTS[RESNET], PASSES, torch.bfloat16, **OPTIONS),
    optimizer_case(f"{RESNET}, clipped", "SGD", LISTS[RESNET], PASSES, clip=1.0, **OPTIONS),
]
TINY_CASES = [optimizer_case("MLP, 4 tensors", "SGD", MLP_SHAPES, PASSES, **OPTIONS)]
