"""Attention problems, the oracle's answer to each, and PyTorch's own in the same dtype."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from bigkern.reference import attention as reference
from tests.support import to_oracle

NAMES = ("output", "lse", "grad_query", "grad_key", "grad_value", "grad_attn_mask")
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Case:
    """Sizes and options; `mask` is a key of MASKS."""

    batch: int = 2
    heads: int = 2
    kv_heads: int | None = None
    len_q: int = 17
    len_k: int = 33
    head_dim: int = 16
    value_dim: int | None = None
    mask: str | None = None
    is_causal: bool = False
    scale: float | None = None
    window: tuple[int, int] = (-1, -1)
    has_alibi: bool = False

    def __str__(self):
        changed = [f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name)]
        return ",".join(changed) or "plain"

    @property
    def gqa(self):
        return self.kv_heads is not None and self.kv_heads != self.heads

    def inputs(self, dtype, device):
        """(query, key, value, attn_mask), gradients asked for."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        shapes = (
            (self.batch, self.heads, self.len_q, self.head_dim),
            (self.batch, kv_heads, self.len_k, self.head_dim),
            (self.batch, kv_heads, self.len_k, value_dim),
        )
        tensors = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]
        mask = MASKS[self.mask](self, dtype) if self.mask else None
        if mask is not None:
            mask = mask.to(device)
            mask.requires_grad_(mask.is_floating_point())
        return *tensors, mask

    def on(self, place):
        """The case, with what does not matter to it cut down where a place computes slowly."""
        if not place.slow:
            return self
        case = replace(self, batch=min(self.batch, 1)) if self.mask is None else self
        return replace(case, head_dim=min(case.head_dim, 160), heads=1) if not case.gqa else case

    def place(self, dtype, device="cpu"):
        """(alibi_slopes, window_left, window_right)"""
        slopes = 2.0 ** -torch.arange(1, self.heads + 1, dtype=torch.promote_types(dtype, torch.float32))
        return slopes.to(device).expand(self.batch, -1) if self.has_alibi else None, *self.window

    def scale_or_default(self):
        return self.head_dim**-0.5 if self.scale is None else self.scale


def _visible(case, *shape):
    return torch.rand(shape) < 0.7


def _rows_that_see_nothing(case):
    visible = _visible(case, case.batch, case.heads, case.len_q, case.len_k)
    visible[0, :, ::3] = False
    visible[-1, 0] = False
    return visible


def _additive(visible, dtype):
    return torch.randn(visible.shape).masked_fill(~visible, NEGATIVE_INFINITY).to(dtype)


MASKS = {
    "bool": lambda case, dtype: _visible(case, case.batch, case.heads, case.len_q, case.len_k),
    "bool_of_keys": lambda case, dtype: _visible(case, case.batch, 1, 1, case.len_k),
    "bool_of_queries": lambda case, dtype: _visible(case, case.len_q, 1),
    "bool_fully_masked_rows": lambda case, dtype: _rows_that_see_nothing(case),
    "additive": lambda case, dtype: torch.randn(case.batch, case.heads, case.len_q, case.len_k).to(dtype),
    "additive_float32": lambda case, dtype: torch.randn(case.heads, case.len_q, case.len_k, dtype=torch.float32),
    "additive_of_heads": lambda case, dtype: torch.randn(case.heads, 1, 1).to(dtype),
    "additive_of_positions": lambda case, dtype: torch.randn(case.len_q, case.len_k).to(dtype),
    "additive_of_keys": lambda case, dtype: torch.randn(case.batch, 1, 1, case.len_k).to(dtype),
    "additive_with_infinity": lambda case, dtype: _additive(_visible(case, case.len_q, case.len_k), dtype),
    "additive_fully_masked_rows": lambda case, dtype: _additive(_rows_that_see_nothing(case), dtype),
}


def _precise(tensor):
    """As the oracle takes it: at least float64, and wider than that for float64, whose rounding is what is measured."""
    array = to_oracle(tensor)
    is_double = tensor is not None and tensor.dtype == torch.float64
    return array.astype(np.longdouble) if is_double else array


NOWHERE = (None, -1, -1)


def oracle(inputs, grad_output, grad_lse, is_causal, scale, rng_state=None, dropout_p=0.0, place=NOWHERE):
    """(output, lse, grad_query, grad_key, grad_value, grad_mask or None), and the magnitudes of gradients whose terms
    cancel, by name: the same sums of absolute values."""
    query, key, value, mask = inputs
    mask_shape = (*query.shape[:3], key.shape[2])
    full_mask = None if mask is None else _precise(mask.expand(mask_shape))
    arrays = (*(_precise(tensor) for tensor in (query, key, value)), full_mask)
    options = (to_oracle(rng_state), dropout_p, is_causal, scale, _precise(place[0]), *place[1:])
    output, lse = reference.attention_forward(*arrays, *options)
    needs_mask_grad = mask is not None and mask.requires_grad
    grads = (_precise(grad_output), _precise(grad_lse))
    *grads, grad_mask = reference.attention_backward(*grads, *arrays, output, lse, *options, needs_mask_grad)
    magnitudes = {}
    if key.shape[2] == 1:
        # The softmax of a single key is constant: the two terms of the gradient of its score are equal.
        groups = query.shape[1] // key.shape[1]
        query, key, value, grad = (abs(to_oracle(tensor)) for tensor in (query, key, value, grad_output))
        key, value = key.repeat(groups, 1), value.repeat(groups, 1)
        term = (grad * value).sum(-1, keepdims=True)
        magnitudes = {"grad_query": abs(scale) * term * key, "grad_key": abs(scale) * (term * query).sum(2)}
    if not needs_mask_grad:
        return (output, lse, *grads, None), magnitudes
    terms = abs(grad_mask) if mask_shape[3] != 1 else term
    magnitudes["grad_attn_mask"] = _sum_to_shape(terms, mask.shape)
    return (output, lse, *grads, _sum_to_shape(grad_mask, mask.shape)), magnitudes


def _sum_to_shape(array, shape):
    return torch.from_numpy(array.astype(np.float64)).sum_to_size(shape)


def bias_of(place, len_q, len_k, dtype):
    """ALiBi and a window as an additive mask [batch or 1, heads or 1, len_q, len_k], as a PyTorch user would pass it."""
    alibi_slopes, left, right = place
    dtype = torch.promote_types(dtype, torch.float32)
    device = None if alibi_slopes is None else alibi_slopes.device
    distance = torch.arange(len_q, device=device)[:, None] - torch.arange(len_k, device=device)
    bias = torch.zeros(1, 1, len_q, len_k, dtype=dtype, device=device)
    if alibi_slopes is not None:
        bias = bias - alibi_slopes[..., None, None] * distance.abs()
    if left >= 0:
        bias = bias.masked_fill(distance > left, NEGATIVE_INFINITY)
    return bias if right < 0 else bias.masked_fill(distance < -right, NEGATIVE_INFINITY)


def torch_answer(inputs, grad_output, grad_lse, is_causal, scale, place=NOWHERE):
    """The same from PyTorch in the inputs' dtype: its own op, and logsumexp of the scores for lse."""
    query, key, value, mask = inputs
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if place != NOWHERE:
        alibi_slopes, left, right = place
        bias = bias_of((alibi_slopes, left, 0 if is_causal else right), query.shape[2], key.shape[2], query.dtype)
        bias, is_causal = bias.to(query.device), False
        if mask is not None:
            mask = bias.masked_fill(~mask, NEGATIVE_INFINITY) if mask.dtype == torch.bool else bias + mask
        else:
            mask = bias
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    lse = torch_lse(query, key, value, mask, is_causal, scale)
    results, gradients = (output,), (grad_output,)
    if grad_lse is not None:
        results, gradients = (output, lse), (grad_output, grad_lse)
    grads = list(torch.autograd.grad(results, wanted, gradients, allow_unused=True))
    return output, lse, *grads, *([None] if len(grads) == 3 else [])


def dense_scores(query, key, mask, is_causal, scale):
    """[batch, heads, len_q, len_k] in PyTorch's operators, -inf where a query does not see a key."""
    scores = query @ key.repeat_interleave(query.shape[1] // max(key.shape[1], 1), 1).mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, NEGATIVE_INFINITY) if mask.dtype == torch.bool else scores + mask
    if is_causal:
        query_index, key_index = (torch.arange(size, device=scores.device) for size in scores.shape[-2:])
        scores = scores.masked_fill(key_index > query_index[:, None], NEGATIVE_INFINITY)
    return scores


def torch_lse(query, key, value, mask, is_causal, scale):
    """lse in PyTorch's operators; it has no gradient where a query sees no key."""
    acc = torch.promote_types(query.dtype, torch.float32)
    scores = dense_scores(query.to(acc), key.to(acc), mask, is_causal, scale)
    blind = (scores == NEGATIVE_INFINITY).all(-1)
    lse = torch.logsumexp(scores.masked_fill(blind[..., None], 0), -1) if key.shape[2] else scores.sum(-1)
    return lse.masked_fill(blind, NEGATIVE_INFINITY)
