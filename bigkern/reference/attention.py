"""Scaled dot product attention. query is [batch, heads, len_q, head_dim], key [batch, kv_heads, len_k, head_dim], value
[batch, kv_heads, len_k, value_dim]; query head h uses kv head h // (heads // kv_heads)."""

import numpy as np

from .array_module import array_module, largest
from .philox import dropout_keep


def attention_forward(
    query,
    key,
    value,
    attn_mask,
    rng_state,
    dropout_p,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
):
    """(output [batch, heads, len_q, value_dim], lse [batch, heads, len_q])"""
    place = (alibi_slopes, window_left, window_right)
    probs, lse = _softmax(_scores(query, key, attn_mask, is_causal, scale, *place))
    probs = probs * _dropout_weight(rng_state, dropout_p, probs.shape)
    return probs @ _for_each_head(value, query), lse


def attention_backward(
    grad_output,
    grad_lse,
    query,
    key,
    value,
    attn_mask,
    output,
    lse,
    rng_state,
    dropout_p,
    is_causal,
    scale,
    alibi_slopes,
    window_left,
    window_right,
    needs_mask_grad,
):
    """(grad_query, grad_key, grad_value, grad_attn_mask); the last has 0 elements unless needs_mask_grad.

    output and lse, which a kernel takes from the forward pass, are computed afresh here: they may have been rounded.
    """
    xp = array_module(query)
    place = (alibi_slopes, window_left, window_right)
    probs, lse = _softmax(_scores(query, key, attn_mask, is_causal, scale, *place))
    dropout_weight = _dropout_weight(rng_state, dropout_p, probs.shape)
    grad_value = (probs * dropout_weight).swapaxes(-1, -2) @ grad_output
    grad_probs = (grad_output @ _for_each_head(value, query).swapaxes(-1, -2)) * dropout_weight
    delta = (probs * grad_probs).sum(-1, keepdims=True)
    grad_scores = probs * (grad_probs - delta)
    if grad_lse is not None:
        # lse of a row that sees no key is a constant
        grad_scores = grad_scores + probs * xp.where(lse == -np.inf, 0, grad_lse)[..., None]
    grad_query = grad_scores @ _for_each_head(key, query) * scale
    grad_key = grad_scores.swapaxes(-1, -2) @ query * scale
    return (
        grad_query,
        _sum_over_group(grad_key, key),
        _sum_over_group(grad_value, value),
        grad_scores if needs_mask_grad else xp.zeros(0),
    )


def _for_each_head(tensor, query):
    """key or value [batch, kv_heads, ...] repeated to [batch, heads, ...]"""
    return array_module(tensor).repeat(tensor, query.shape[1] // max(tensor.shape[1], 1), axis=1)


def _sum_over_group(grad, tensor):
    """The inverse for gradients: [batch, heads, ...] summed to [batch, kv_heads, ...]"""
    batch, kv_heads, length, dim = tensor.shape
    return grad.reshape(batch, kv_heads, grad.shape[1] // max(kv_heads, 1), length, dim).sum(2)


def _scores(query, key, attn_mask, is_causal, scale, alibi_slopes, window_left, window_right):
    """[batch, heads, len_q, len_k], -inf where a query does not see a key"""
    xp = array_module(query)
    scores = query @ _for_each_head(key, query).swapaxes(-1, -2) * scale
    if attn_mask is not None:
        scores = xp.where(attn_mask, scores, -np.inf) if attn_mask.dtype == bool else scores + attn_mask
    query_index, key_index = xp.arange(query.shape[2])[:, None], xp.arange(key.shape[2])
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[..., None, None] * abs(query_index - key_index)
    if is_causal:
        window_right = 0
    visible = xp.full((query.shape[2], key.shape[2]), True)
    if window_left >= 0:
        visible &= key_index >= query_index - window_left
    if window_right >= 0:
        visible &= key_index <= query_index + window_right
    return xp.where(visible, scores, -np.inf)


def _softmax(scores):
    """(probabilities, lse) over the last dimension; a row of nothing but -inf has probabilities 0 and lse -inf"""
    xp = array_module(scores)
    row_max = largest(scores, -1, -np.inf, keepdims=True)
    # exp overflows above 709; shifting by the row maximum leaves the softmax unchanged
    shift = xp.where(row_max == -np.inf, 0, row_max)
    with np.errstate(invalid="ignore", divide="ignore"):
        exp = xp.exp(scores - shift)
        row_sum = exp.sum(-1, keepdims=True)
        lse = (xp.log(row_sum) + shift).squeeze(-1)
    return exp / xp.where(row_sum == 0, 1, row_sum), lse


def _dropout_weight(rng_state, dropout_p, shape):
    """What each probability is multiplied by: 0, or 1 / (1 - dropout_p)"""
    if dropout_p == 0:
        return 1.0
    return dropout_keep(rng_state, dropout_p, *shape) / (1 - dropout_p)
