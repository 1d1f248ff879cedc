"""Divergence of a student's softmax from its teacher's, both at a temperature; logits [N, C]."""

import numpy as np

from .array_module import array_module, largest


def _softmax(logits, temperature):
    """(probabilities, their logarithms, the largest logit [N], sum of exponentials [N])"""
    xp = array_module(logits)
    with np.errstate(invalid="ignore", divide="ignore"):
        row_max = largest(logits, 1, -np.inf)
        shifted = (logits - row_max[:, None]) / temperature
        exp_sum = xp.exp(shifted).sum(1)
        log_p = shifted - xp.log(exp_sum)[:, None]
    return xp.exp(log_p), log_p, row_max, exp_sum


def distillation_loss_forward(student, teacher, temperature, reduction):
    """(loss [N] or [], [N, 4]: largest logit and sum of exponentials, of student and teacher)"""
    xp = array_module(student)
    _, log_q, *student_statistics = _softmax(student, temperature)
    p, log_p, *teacher_statistics = _softmax(teacher, temperature)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = xp.where(p == 0, 0, p * (log_p - log_q))
        losses = temperature**2 * terms.sum(1)
        loss = losses if reduction == "none" else losses.sum()
        if reduction == "mean":
            loss = loss / np.float64(len(losses))
    return loss, xp.stack([*student_statistics, *teacher_statistics], 1)


def distillation_loss_backward(grad_loss, student, teacher, statistics, temperature, reduction):
    """The gradient of student [N, C]."""
    share = grad_loss[:, None] if reduction == "none" else grad_loss
    if reduction == "mean":
        share = share / max(len(student), 1)
    return (share * temperature * (_softmax(student, temperature)[0] - _softmax(teacher, temperature)[0]),)
