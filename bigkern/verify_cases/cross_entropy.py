"""Cases of cross_entropy."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _cross_entropy(name, shape=(23, 101), weight=False, probabilities=False, ignored=False, **options):
    N, C, *rest = shape

    def inputs():
        drawn = {"input": torch.randn(shape) * 3}
        if probabilities:
            drawn["target"] = torch.softmax(torch.randn(shape), 1)
        else:
            drawn["target"] = torch.randint(0, C, (N, *rest))
        if ignored:
            drawn["target"].view(-1)[::3] = options.get("ignore_index", -100)
        return {**drawn, "weight": torch.rand(C) + 0.5} if weight else drawn

    return Case(
        "cross_entropy",
        name,
        inputs,
        lambda **tensors: bigkern.cross_entropy(**tensors, **options),
        lambda **tensors: F.cross_entropy(**tensors, **options),
        ("input", "target") if probabilities else ("input",),
    )


CROSS_ENTROPY = [
    _cross_entropy("mean"),
    _cross_entropy("sum", reduction="sum"),
    _cross_entropy("none", reduction="none"),
    _cross_entropy("32x1000", shape=(32, 1000)),
    _cross_entropy("ignore_index", ignored=True, ignore_index=7),
    _cross_entropy("class weights, smoothing", weight=True, ignored=True, label_smoothing=0.1),
    _cross_entropy("probabilities, smoothing", probabilities=True, label_smoothing=0.1),
    _cross_entropy("images 3x11x5x7", shape=(3, 11, 5, 7)),
]
