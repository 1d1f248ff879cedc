"""Cases of attention."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case


def _attention(name, heads=4, kv_heads=4, len_q=33, len_k=33, mask=None, **options):
    def inputs():
        drawn = {
            "query": torch.randn(2, heads, len_q, 40),
            "key": torch.randn(2, kv_heads, len_k, 40),
            "value": torch.randn(2, kv_heads, len_k, 40),
        }
        return drawn if mask is None else {**drawn, "attn_mask": mask(len_q, len_k)}

    gradients = ("query", "key", "value", "attn_mask") if mask is _float_mask else ("query", "key", "value")
    return Case(
        "attention",
        name,
        inputs,
        lambda **tensors: bigkern.attention(**tensors, **options),
        lambda **tensors: F.scaled_dot_product_attention(**tensors, **options),
        gradients,
    )


def _placed(name, is_causal=False, window_size=(-1, -1), has_alibi=False):
    """A window or ALiBi, against the same as a dense additive mask."""
    left, right = window_size

    def slopes(query):
        dtype = torch.promote_types(query.dtype, torch.float32)
        return 2.0 ** -torch.arange(1, 5, dtype=dtype, device=query.device) if has_alibi else None

    def ours(query, key, value):
        options = {"is_causal": is_causal, "window_size": window_size, "alibi_slopes": slopes(query)}
        return bigkern.attention(query, key, value, **options)

    def theirs(query, key, value):
        distance = torch.arange(33, device=query.device)[:, None] - torch.arange(33, device=query.device)
        bias = torch.zeros(33, 33, device=query.device)
        if has_alibi:
            bias = bias - slopes(query)[:, None, None] * distance.abs()
        hidden = (distance > left) | (distance < (0 if is_causal else -right))
        bias = bias.masked_fill(hidden, float("-inf")).to(torch.promote_types(query.dtype, torch.float32))
        return F.scaled_dot_product_attention(query, key, value, bias)

    inputs = _attention("", mask=None).inputs
    return Case("attention", name, inputs, ours, theirs, ("query", "key", "value"))


def _bool_mask(len_q, len_k):
    mask = torch.rand(len_q, len_k) < 0.6
    mask[:, 0] = True
    mask[len_q // 2] = False  # one query that sees nothing
    return mask


def _float_mask(len_q, len_k):
    return torch.randn(2, 1, len_q, len_k)


ATTENTION = [
    _attention("self"),
    _attention("cross 17x50, scale 0.3", len_q=17, len_k=50, scale=0.3),
    _attention("causal", is_causal=True),
    _attention("causal 20x37", len_q=20, len_k=37, is_causal=True),
    _attention("bool mask", mask=_bool_mask),
    _attention("additive mask", mask=_float_mask),
    _placed("window 12 left, 5 right", window_size=(12, 5)),
    _placed("causal window of 9, ALiBi", is_causal=True, window_size=(8, -1), has_alibi=True),
    _attention("grouped queries 4/2", kv_heads=2, enable_gqa=True),
    _attention("one query, grouped 4/1", kv_heads=1, len_q=1, len_k=65, enable_gqa=True),
]
