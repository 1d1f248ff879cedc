"""PyTorch and bigkern taking turns in one computation: what rival thread pools would cost.

Where both live on one pool, the mixed chain takes the mean of the chain that is all PyTorch's ("eager") and the one
that is all bigkern's ("bigkern only"); two pools that spin against each other would take up to twice that.
"""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("linear_act",)
LAYERS = 8


def _chain(*layers):
    def run(input, weight, bias):
        for i in range(LAYERS):
            input = layers[i % len(layers)](input, weight, bias)
        return input

    return run


def _ours(input, weight, bias):
    return bigkern.linear_act(input, weight, bias, "relu")


def _theirs(input, weight, bias):
    return F.relu(F.linear(input, weight, bias))


def _case(M, N):
    def inputs(device):
        # He initialisation keeps the values of a deep chain in range.
        weight = torch.randn(N, N, device=device) * (2 / N) ** 0.5
        return {"input": torch.randn(M, N, device=device), "weight": weight, "bias": torch.zeros(N, device=device)}

    return Case(
        f"{LAYERS} layers {M}x{N}x{N}, taking turns",
        inputs,
        _chain(_theirs, _ours),
        _chain(_theirs),
        peers={"bigkern only": _chain(_ours)},
        flops=LAYERS * 2 * M * N * N,
        bytes=4 * (N * N + 2 * LAYERS * M * N),
    )


CASES = [_case(64, 256), _case(256, 768)]
