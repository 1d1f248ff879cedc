"""Divergence of a student's softmax from its teacher's, both at a temperature; logits [N, C]."""

import numpy as np


def _softmax(logits, temperature):
    """(probabilities, their logarithms, the largest logit [N], sum of exponentials [N])"""
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = logits.max(1, initial=-np.inf)
        shifted = (logits - largest[:, None]) / temperature
        exp_sum = np.exp(shifted).sum(1)
        log_p = shifted - np.log(exp_sum)[:, None]
    return np.exp(log_p), log_p, largest, exp_sum


def distillation_loss_forward(student, teacher, temperature, reduction):
    """(loss [N] or [], [N, 4]: largest logit and sum of exponentials, of student and teacher)"""
    _, log_q, *student_statistics = _softmax(student, temperature)
    p, log_p, *teacher_statistics = _softmax(teacher, temperature)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(p == 0, 0, p * (log_p - log_q))
        losses = temperature**2 * terms.sum(1)
        loss = losses if reduction == "none" else losses.sum()
        if reduction == "mean":
            loss = loss / np.float64(len(losses))
    return loss, np.stack([*student_statistics, *teacher_statistics], 1)


def distillation_loss_backward(grad_loss, student, teacher, statistics, temperature, reduction):
    """The gradient of student [N, C]."""
    share = grad_loss[:, None] if reduction == "none" else grad_loss
    if reduction == "mean":
        share = share / max(len(student), 1)
    return (share * temperature * (_softmax(student, temperature)[0] - _softmax(teacher, temperature)[0]),)
