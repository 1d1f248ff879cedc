"""Cross entropy of input @ linear_weight.T + linear_bias with class indices.

input [N, K], linear_weight [C, K], linear_bias [C] or None, target [N], weight [C] or None.
"""

from . import cross_entropy
from .array_module import array_module


def _logits(input, linear_weight, linear_bias):
    logits = input @ linear_weight.T
    return (logits if linear_bias is None else logits + linear_bias)[:, :, None]


def linear_cross_entropy_forward(
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    """(loss [N] or [], and its gradients as linear_cross_entropy_backward gives them)"""
    xp = array_module(input)
    options = (ignore_index, reduction, label_smoothing)
    logits = _logits(input, linear_weight, linear_bias)
    loss, _, _ = cross_entropy.cross_entropy_forward(logits, target[:, None], weight, *options)
    needs = (needs_input_grad, needs_weight_grad, needs_bias_grad)
    grad_loss = xp.ones(target.shape if reduction == "none" else ())
    grads = linear_cross_entropy_backward(
        grad_loss, input, linear_weight, linear_bias, target, weight, *options, *needs
    )
    return loss[:, 0] if reduction == "none" else loss, *grads


def linear_cross_entropy_backward(
    grad_loss,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
):
    """(gradient of input [N, K], of linear_weight [C, K], of linear_bias [C]); [0] where one is not asked for."""
    xp = array_module(grad_loss)
    options = (ignore_index, reduction, label_smoothing)
    logits = _logits(input, linear_weight, linear_bias)
    _, lse, total_weight = cross_entropy.cross_entropy_forward(logits, target[:, None], weight, *options)
    grad_loss = grad_loss[:, None] if reduction == "none" else grad_loss
    saved = (logits, target[:, None], weight, lse, total_weight)
    grad_logits = cross_entropy.cross_entropy_backward(grad_loss, *saved, *options, False)[0][:, :, 0]
    return (
        grad_logits @ linear_weight if needs_input_grad else xp.zeros(0),
        grad_logits.T @ input if needs_weight_grad else xp.zeros(0),
        grad_logits.sum(0) if needs_bias_grad else xp.zeros(0),
    )
