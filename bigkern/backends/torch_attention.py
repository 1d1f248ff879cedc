"""attention in PyTorch's operators: the torch backend, and the road of second derivatives.

The forward pass is PyTorch's own fused kernel where that one gives the right lse and NaN; all else stores the scores.
"""

import torch

from .torch_philox import philox4x32


def attention_forward_torch(
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
    """(output, lse); the same function as the kernels'."""
    place = (alibi_slopes, window_left, window_right)
    if (
        alibi_slopes is None
        and max(window_left, window_right) < 0
        and _fused_applies(query, key, value, attn_mask, dropout_p)
    ):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scale
        )
        return output.contiguous(), lse.contiguous()
    scores = _scores(query, key, attn_mask, is_causal, scale, *place)
    if not scores.shape[-1]:
        return query.new_zeros((*query.shape[:3], value.shape[3])), scores.new_full(query.shape[:3], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    probs = _probabilities(scores, lse) * _dropout_weight(rng_state, dropout_p, scores)
    return (probs @ _for_each_head(value, query)).to(query.dtype), lse


def attention_backward_torch(
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
    """(grad_query, grad_key, grad_value, grad_attn_mask), differentiable in every floating argument."""
    scores = _scores(query, key, attn_mask, is_causal, scale, alibi_slopes, window_left, window_right)
    probs = _probabilities(scores, lse)
    dropout_weight = _dropout_weight(rng_state, dropout_p, scores)
    grad_output = grad_output.to(lse.dtype)
    delta = (grad_output * output).sum(-1)
    if grad_lse is not None:
        # lse of a row that sees no key is a constant
        delta = delta - grad_lse.masked_fill(lse == float("-inf"), 0)
    grad_probs = grad_output @ _for_each_head(value, query).mT * dropout_weight
    grad_scores = probs * (grad_probs - delta[..., None])
    grad_query = grad_scores @ _for_each_head(key, query) * scale
    grad_key = _sum_over_group(grad_scores.mT @ query.to(lse.dtype) * scale, key)
    grad_value = _sum_over_group((probs * dropout_weight).mT @ grad_output, value)
    grad_mask = grad_scores.to(attn_mask.dtype) if needs_mask_grad else query.new_empty(0)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), grad_mask


def dropout_keep(rng_state, dropout_p, batch, heads, len_q, len_k):
    """reference.philox.dropout_keep in int64 tensors: [batch, heads, len_q, len_k] of booleans, without a sync."""
    key_quads = -(-len_k // 4)
    quad_index, query_index, head_index = (
        torch.arange(size, device=rng_state.device) for size in (key_quads, len_q, batch * heads)
    )
    words = philox4x32(rng_state, quad_index, query_index[:, None], head_index[:, None, None])
    words = words.reshape(batch, heads, len_q, 4 * key_quads)[..., :len_k]
    return words >= int(dropout_p * 2**32)


def _fused_applies(query, key, value, attn_mask, dropout_p):
    """Whether PyTorch's fused CPU kernel gives the right lse and NaN; it has no derivative of second order."""
    batch, heads, len_q, head_dim = query.shape
    return (
        query.device.type == "cpu"
        and not torch.is_grad_enabled()
        # In half precision its lse is off by 5e-5, and 0 where a mask hides every key.
        and query.dtype in (torch.float32, torch.float64)
        and attn_mask is None
        and dropout_p == 0
        and head_dim == value.shape[3]
        and heads == key.shape[1]
        and min(batch, heads, len_q, head_dim) > 0
        # Below one vector of keys it takes a row of NaN for a row that sees no key, and gives zeros.
        and key.shape[2] >= 16
    )


def _for_each_head(tensor, query):
    """key or value [batch, kv_heads, ...] in the dtype of lse, repeated to [batch, heads, ...]"""
    tensor = tensor.to(acc_dtype(tensor.dtype))
    return tensor.repeat_interleave(query.shape[1] // max(tensor.shape[1], 1), 1)


def _sum_over_group(grad, tensor):
    batch, kv_heads, length, dim = tensor.shape
    return grad.reshape(batch, kv_heads, grad.shape[1] // max(kv_heads, 1), length, dim).sum(2)


def acc_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scores(query, key, attn_mask, is_causal, scale, alibi_slopes, window_left, window_right):
    """[batch, heads, len_q, len_k] in the dtype of lse, -inf where a query does not see a key"""
    scores = query.to(acc_dtype(query.dtype)) @ _for_each_head(key, query).mT * scale
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    window_right = 0 if is_causal else window_right
    if alibi_slopes is None and window_left < 0 and window_right < 0:
        return scores
    query_index, key_index = (torch.arange(size, device=scores.device) for size in scores.shape[-2:])
    distance = query_index[:, None] - key_index  # positive where the key comes first
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[..., None, None] * distance.abs()
    if window_left >= 0:
        scores = scores.masked_fill(distance > window_left, float("-inf"))
    if window_right >= 0:
        scores = scores.masked_fill(distance < -window_right, float("-inf"))
    return scores


def _probabilities(scores, lse):
    # -inf - -inf is NaN, where exp(-inf - 0) is the 0 of a row that sees no key
    return torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0)[..., None])


def _dropout_weight(rng_state, dropout_p, scores):
    if dropout_p == 0:
        return 1.0
    return dropout_keep(rng_state, dropout_p, *scores.shape).to(scores.dtype) / (1 - dropout_p)
