"""The digits perceptron, 784-64-10 with its loss, against the same network in plain PyTorch."""

import itertools

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("linear_act", "cross_entropy")
SIZES = (784, 64, 10)


def _case(batch):
    def inputs(device):
        width, hidden, classes = SIZES
        return {
            "input": torch.rand(batch, width, device=device),
            "target": torch.randint(classes, (batch,), device=device),
            "weight1": torch.randn(hidden, width, device=device) / width**0.5,
            "bias1": torch.zeros(hidden, device=device),
            "weight2": torch.randn(classes, hidden, device=device) / hidden**0.5,
            "bias2": torch.zeros(classes, device=device),
        }

    def ours(input, target, weight1, bias1, weight2, bias2):
        hidden = bigkern.linear_act(input, weight1, bias1, "relu")
        return bigkern.cross_entropy(bigkern.linear_act(hidden, weight2, bias2, "none"), target)

    def theirs(input, target, weight1, bias1, weight2, bias2):
        hidden = F.relu(F.linear(input, weight1, bias1))
        return F.cross_entropy(F.linear(hidden, weight2, bias2), target)

    weights = sum(a * b for a, b in itertools.pairwise(SIZES))
    first = SIZES[0] * SIZES[1]
    return Case(
        f"batch {batch}",
        inputs,
        ours,
        theirs,
        flops=2 * batch * weights,
        bytes=4 * (weights + batch * sum(SIZES)),
        gradients=("weight1", "bias1", "weight2", "bias2"),
        # The first layer needs no gradient for its input.
        train_flops=6 * batch * weights - 2 * batch * first,
        train_bytes=4 * 3 * (weights + batch * sum(SIZES)),
    )


CASES = [_case(32), _case(512)]
