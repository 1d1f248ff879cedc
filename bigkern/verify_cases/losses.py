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


def _pointwise(op, name, target=torch.rand, tensors=None, **options):
    """A loss of input and target alone, [19, 23]; `tensors` are drawn beside them, by name and size."""
    ours, theirs = getattr(bigkern, op), getattr(F, op)

    def inputs():
        drawn = {"input": torch.randn(19, 23), "target": target(19, 23)}
        return drawn | {key: torch.rand(size) + 0.5 for key, size in (tensors or {}).items()}

    return Case(
        op,
        name,
        inputs,
        lambda **given: ours(**given, **options),
        lambda **given: theirs(**given, **options),
        ("input", "target"),
    )


MSE_LOSS = [_pointwise("mse_loss", reduction, reduction=reduction) for reduction in ("mean", "sum", "none")]
BINARY_CROSS_ENTROPY_WITH_LOGITS = [
    _pointwise("binary_cross_entropy_with_logits", "mean"),
    _pointwise("binary_cross_entropy_with_logits", "none", reduction="none"),
    _pointwise("binary_cross_entropy_with_logits", "weights", tensors={"weight": (19, 1), "pos_weight": (23,)}),
]
KL_DIV = [
    _pointwise("kl_div", "batchmean", reduction="batchmean"),
    _pointwise("kl_div", "none", reduction="none"),
    _pointwise("kl_div", "sum of log_target", torch.randn, reduction="sum", log_target=True),
]


def _distillation_loss(temperature, reduction):
    def composed(student, teacher):
        log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
        losses = F.kl_div(log_q, p, reduction="none").sum(1) * temperature**2
        return losses if reduction == "none" else losses.mean()

    return Case(
        "distillation_loss",
        f"temperature {temperature}, {reduction}",
        lambda: {"student": torch.randn(19, 101) * 3, "teacher": torch.randn(19, 101) * 3},
        lambda student, teacher: bigkern.distillation_loss(student, teacher, temperature, reduction),
        composed,
        ("student",),
    )


DISTILLATION_LOSS = [_distillation_loss(1.0, "mean"), _distillation_loss(4.0, "none")]
LOSSES = [*LINEAR_CROSS_ENTROPY, *MSE_LOSS, *BINARY_CROSS_ENTROPY_WITH_LOGITS, *KL_DIV, *DISTILLATION_LOSS]
