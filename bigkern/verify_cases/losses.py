"""Cases of the losses other than cross_entropy."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _linear_cross_entropy(name, rows=23, features=17, classes=101, weight=False, bias=True, **options):
    def inputs():
        drawn = {
            "input": torch.randn(rows, features),
            "linear_weight": torch.randn(classes, features) / 2,
            "target": torch.randint(0, classes, (rows,)),
        }
        drawn["target"][::3] = options.get("ignore_index", -100)
        if bias:
            drawn["linear_bias"] = torch.randn(classes)
        return {**drawn, "weight": torch.rand(classes) + 0.5} if weight else drawn

    def composed(input, linear_weight, target, linear_bias=None, weight=None):
        return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight, **options)

    return Case(
        "linear_cross_entropy",
        name,
        inputs,
        lambda **tensors: bigkern.linear_cross_entropy(**tensors, **options),
        composed,
        ("input", "linear_weight", "linear_bias") if bias else ("input", "linear_weight"),
    )


LINEAR_CROSS_ENTROPY = [
    _linear_cross_entropy("mean"),
    _linear_cross_entropy("sum, no bias", bias=False, reduction="sum"),
    _linear_cross_entropy("none", reduction="none"),
    _linear_cross_entropy("ignore_index", ignore_index=7),
    _linear_cross_entropy("class weights, smoothing", weight=True, label_smoothing=0.1),
]
