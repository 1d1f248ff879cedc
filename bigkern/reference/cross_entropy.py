"""Cross entropy of logits [N, C, D] with class indices [N, D] or class probabilities [N, C, D].

Every loss is -sum_c mass_c * log p_c with p = softmax(input): the mass of a class is the target's probability, mixed
with 1/C by label_smoothing, times the weight of the class.
"""

import numpy as np

from .array_module import array_module


def _log_softmax(input):
    """(log_softmax over the classes, logsumexp [N, D]); NaN where a row holds +inf or nothing but -inf."""
    xp = array_module(input)
    if input.shape[1] == 0:
        return input, xp.full((input.shape[0], input.shape[2]), -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        row_max = input.max(1, keepdims=True)
        shifted = input - row_max
        log_sum = xp.log(xp.exp(shifted).sum(1, keepdims=True))
        return shifted - log_sum, (row_max + log_sum)[:, 0]


def _masses(input, target, weight, ignore_index, label_smoothing):
    """(mass of the target and of smoothing [N, C, D]; rows that count [N, D] and their share of "mean" [N, D])"""
    xp = array_module(input)
    n, c, d = input.shape
    weight = xp.ones(c) if weight is None else weight
    if np.issubdtype(target.dtype, np.floating):
        counted, row_weight = xp.ones((n, d), bool), xp.ones((n, d)) * (c > 0)
    else:
        counted = target != ignore_index
        for bad in target[counted & ((target < 0) | (target >= c))]:
            raise IndexError(f"Target {bad} is out of bounds.")
        target = _own_class(input, target)
        row_weight = xp.where(target & counted[:, None, :], weight[:, None], 0).sum(1)
    own = (1 - label_smoothing) * target * weight[:, None]
    smooth = xp.broadcast_to(label_smoothing / max(c, 1) * weight[:, None], input.shape)
    return own, smooth, counted, row_weight


def _own_class(input, target):
    """True where the class is the row's index target [N, C, D]."""
    return array_module(input).arange(input.shape[1])[:, None] == target[:, None, :]


def cross_entropy_forward(input, target, weight, ignore_index, reduction, label_smoothing):
    """(loss [N, D] or [], logsumexp [N, D], total weight [])"""
    xp = array_module(input)
    log_p, lse = _log_softmax(input)
    own, smooth, counted, row_weight = _masses(input, target, weight, ignore_index, label_smoothing)
    with np.errstate(invalid="ignore", divide="ignore"):
        if np.issubdtype(target.dtype, np.floating):
            loss = -((own + smooth) * log_p).sum(1)
        else:
            # Only what is asked for is multiplied: log_p may be -inf, and 0 * inf is NaN.
            loss = -xp.where(_own_class(input, target), own * log_p, 0).sum(1)
            if label_smoothing > 0:
                loss = loss - (smooth * log_p).sum(1)
        loss = xp.where(counted, loss, 0)
        total_weight = row_weight.sum()
        if reduction == "sum":
            loss = loss.sum()
        elif reduction == "mean":
            loss = loss.sum() / total_weight
    return loss, lse, total_weight


def cross_entropy_backward(
    grad_loss, input, target, weight, lse, total_weight, ignore_index, reduction, label_smoothing, needs_target_grad
):
    """(gradient of input [N, C, D], of probability targets [N, C, D] or [0])"""
    xp = array_module(input)
    log_p, _ = _log_softmax(input)
    own, smooth, counted, _ = _masses(input, target, weight, ignore_index, label_smoothing)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = xp.broadcast_to(grad_loss / total_weight if reduction == "mean" else grad_loss, counted.shape)
        scale = xp.where(counted, scale, 0)[:, None, :]
        mass = own + smooth
        grad_input = scale * (xp.exp(log_p) * mass.sum(1, keepdims=True) - mass)
        if not needs_target_grad:
            return grad_input, xp.zeros(0)
        weight = 1 if weight is None else weight[:, None]
        grad_target = -scale * (1 - label_smoothing) * weight * log_p
    return grad_input, grad_target
