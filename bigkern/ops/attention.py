"""attention: softmax(scale * query @ key^T + attn_mask) @ value, without ever storing the scores.

    scores[i, j] = scale * dot(query[i], key[j]) + attn_mask[i, j] - alibi_slope * |i - j|
    lse[i]       = log(sum_j exp(scores[i, j]))
    output[i]    = sum_j dropout(exp(scores[i, j] - lse[i])) * value[j]

A running maximum and sum take the place of the stored scores, and the backward pass recomputes the probabilities from
lse: memory grows with len_q + len_k, not with their product. Sources: Vaswani et al., "Attention Is All You Need"
(2017); Dao et al., "FlashAttention" (2022); ALiBi: Press et al., "Train Short, Test Long" (2022); sliding windows:
Beltagy et al., "Longformer" (2020). A window costs len * window, not len^2: tiles wholly outside it are skipped.

Dropout draws its mask from a counter (Philox4x32-10, see reference/philox.py), so the backward pass regenerates it.
"""

import math

import torch

from ..backends.torch_attention import attention_backward_torch, attention_forward_torch
from ..registration import Kernel, autocast_enabled, cast_floating, short_way
from ..rng import draw_rng_state

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEAD_DIM_GPU = 256
NO_WINDOW = (-1, -1)


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of lse, in which kernels accumulate: float32 for all but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> torch.Tensor:
    """Scaled dot product attention, as `torch.nn.functional.scaled_dot_product_attention`, and two things more: windows
    and ALiBi. Positions count from the start of query and of key both (is_causal's alignment, top left).

    Args:
        query: floating [..., heads, len_q, head_dim]; 2-D [len_q, head_dim] is one head.
        key: [..., heads, len_k, head_dim], of query's dtype. Leading dimensions of the three broadcast.
        value: [..., heads, len_k, value_dim], of query's dtype; value_dim may differ from head_dim.
        attn_mask: broadcastable to [..., heads, len_q, len_k]. bool: True where a query sees a key. Floating (query's
            dtype or float32): added to the scores. Its gradient is the one thing here that takes memory proportional
            to batch * heads * len_q * len_k; it is computed only where attn_mask requires it.
        dropout_p: the probability, in [0, 1], with which dropout sets a probability to zero; applied whenever it is
            above 0 (there is no training flag). Drawn from torch's generator on query's device.
        is_causal: key j is visible to query i where j <= i. Excludes attn_mask.
        scale: the factor of the scores; None: 1 / sqrt(head_dim).
        enable_gqa: lets key and value have fewer heads, of which each serves heads / kv_heads neighbouring ones of
            query (grouped-query attention, Ainslie et al., 2023).
        window_size: (left, right): key j is visible to query i where i - left <= j <= i + right; -1 sets no bound on
            that side. With is_causal, right is 0. Goes with attn_mask: what either hides is hidden.
        alibi_slopes: float32 (float64 for float64 query) [heads] or [batch, heads], batch being all of query's leading
            dimensions in one. Subtracts slope * |i - j| from the scores. Has no gradient: for slopes that learn, pass
            attn_mask.

    Returns:
        [..., heads, len_q, value_dim] in query's dtype. A query that sees no key gives zeros. NaN or infinity that a
        query sees gives NaN; what it does not see is best kept finite (a probability of 0 times NaN is NaN).

    Raises:
        TypeError: a dtype is not as above.
        ValueError: shapes that do not fit, several devices, dropout_p outside [0, 1], attn_mask with is_causal, a
            window bound below -1, alibi_slopes that want a gradient.
    """
    options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if window_size != NO_WINDOW or alibi_slopes is not None:
        place = {"window_size": window_size, "alibi_slopes": alibi_slopes}
        return attention_with_lse(query, key, value, *options, **place)[0]
    if short := short_way():
        output = short.attention(torch.is_grad_enabled(), query, key, value, *options)
        if output is not None:
            return output
    return attention_with_lse(query, key, value, *options)[0]


def attention_with_lse(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention`, and the natural logarithm of each row's sum of exponentials: for merging partial results.

    Arguments and errors are those of `attention`.

    Returns:
        (output [..., heads, len_q, value_dim], lse [..., heads, len_q]). lse is float32 (float64 for float64 input),
        does not see dropout, is -inf where a query sees no key, and has a gradient.
    """
    device = query.device.type
    if autocast_enabled(device):
        # Here and not at the kernel, so that dtypes are compared after the casts, as PyTorch does.
        dtype = torch.get_autocast_dtype(device)
        query, key, value, attn_mask = (cast_floating(tensor, dtype) for tensor in (query, key, value, attn_mask))
    _check_tensors(query, key, value, attn_mask)
    _check_options(attn_mask, dropout_p, is_causal)
    is_causal, window_left, window_right = checked_window("attention", window_size, is_causal)

    batch_shape, heads, kv_heads = _heads_and_batch(query, key, value, enable_gqa)
    lead = () if query.ndim == key.ndim == value.ndim == 2 else (*batch_shape, heads)
    if attn_mask is not None:
        attn_mask = _expanded_mask(attn_mask, (*lead, query.shape[-2], key.shape[-2]), query.dtype)
        attn_mask = _as_4d(attn_mask, batch_shape, heads)
    query_4d = _as_4d(query, batch_shape, heads)
    key_4d, value_4d = _as_4d(key, batch_shape, kv_heads), _as_4d(value, batch_shape, kv_heads)

    if scale is None:
        head_dim = query.shape[-1]
        scale = 1 / math.sqrt(head_dim) if head_dim else 1.0
    if alibi_slopes is not None:
        alibi_slopes = checked_slopes("attention", alibi_slopes, query_4d)
    dropped = 0 < dropout_p < 1
    output, lse = attention_forward(
        query_4d,
        key_4d,
        value_4d,
        attn_mask,
        draw_rng_state(query.device) if dropped else None,
        float(dropout_p) if dropped else 0.0,
        is_causal,
        float(scale),
        alibi_slopes,
        window_left,
        window_right,
    )
    if dropout_p == 1:
        output = torch.nn.functional.dropout(output, 1.0)
    if output.ndim != len(lead) + 2 or batch_shape != output.shape[:1]:
        output, lse = output.reshape(*lead, *output.shape[2:]), lse.reshape(*lead, lse.shape[2])
    return output, lse


# ---- checks and shapes -----------------------------------------------------------------------------------------------


def _check_tensors(query, key, value, attn_mask):
    if query.dtype not in FLOATING:
        raise TypeError(f"attention: query must be floating, got {query.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"attention: query, key and value must have the same dtype, got {query.dtype}, {key.dtype} and "
            f"{value.dtype}"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"attention: query, key and value must be on the same device, got {query.device}, {key.device} and "
            f"{value.device}"
        )
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ValueError(
            f"attention: query, key and value must have at least 2 dimensions, got {query.ndim}, {key.ndim} and "
            f"{value.ndim}"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: query has head_dim {query.shape[-1]}, key has {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"attention: key has length {key.shape[-2]}, value has {value.shape[-2]}")
    if attn_mask is None:
        return
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        allowed = "torch.bool or torch.float32"
        if query.dtype != torch.float32:
            allowed = f"torch.bool, torch.float32 or {query.dtype}"
        raise TypeError(f"attention: attn_mask must be {allowed}, got {attn_mask.dtype}")
    if attn_mask.device != query.device:
        raise ValueError(f"attention: attn_mask is on {attn_mask.device}, query on {query.device}")


def _check_options(attn_mask, dropout_p, is_causal):
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"attention: dropout_p must be between 0 and 1, got {dropout_p}")
    if attn_mask is not None and is_causal:
        raise ValueError("attention: attn_mask and is_causal=True exclude each other")


def checked_window(op, window_size, is_causal):
    """(is_causal, left, right): a bound of 0 to the right is is_causal's own, and kernels see it as that alone."""
    if len(window_size) != 2 or min(window_size) < -1:
        raise ValueError(f"{op}: window_size must be (left, right), each -1 or more, got {tuple(window_size)}")
    left, right = window_size
    if is_causal or right == 0:
        return True, int(left), -1
    return False, int(left), int(right)


def checked_slopes(op, alibi_slopes, query):
    """[heads] or [batch, heads], expanded to the latter."""
    batch, heads = query.shape[:2]
    if alibi_slopes.dtype != lse_dtype(query.dtype):
        raise TypeError(f"{op}: alibi_slopes must be {lse_dtype(query.dtype)}, got {alibi_slopes.dtype}")
    if alibi_slopes.device != query.device:
        raise ValueError(f"{op}: alibi_slopes is on {alibi_slopes.device}, query on {query.device}")
    if alibi_slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: alibi_slopes has no gradient; slopes that learn are an additive attn_mask")
    if tuple(alibi_slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(f"{op}: alibi_slopes must be [{heads}] or [{batch}, {heads}], got {tuple(alibi_slopes.shape)}")
    return alibi_slopes.expand(batch, heads)


def _heads_and_batch(query, key, value, enable_gqa):
    """(shape of the dimensions before heads, heads of query, heads that key and value are handed on with)"""
    head_counts = [tensor.shape[-3] if tensor.ndim > 2 else 1 for tensor in (query, key, value)]
    batch_shape = _broadcast(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    if enable_gqa:
        heads, kv_heads, value_heads = head_counts
        if kv_heads != value_heads:
            raise ValueError(f"attention: key has {kv_heads} heads, value has {value_heads}")
        if heads % kv_heads if kv_heads else heads:
            raise ValueError(f"attention: {heads} heads of query are no multiple of {kv_heads} heads of key and value")
    else:
        heads = _broadcast(*((count,) for count in head_counts))
        heads = None if heads is None else heads[0]
        # One head of key and value for all of query's is what grouped-query kernels do without repeating it.
        kv_heads = 1 if head_counts[1] == head_counts[2] == 1 else heads
    if batch_shape is None or heads is None:
        leads = [tuple(tensor.shape[:-2]) for tensor in (query, key, value)]
        raise ValueError(
            f"attention: leading dimensions {leads[0]}, {leads[1]} and {leads[2]} of query, key and value do not "
            "broadcast" + ("" if enable_gqa else " (enable_gqa=True lets key and value have fewer heads)")
        )
    return batch_shape, heads, kv_heads


def _broadcast(*shapes):
    """The shape that all broadcast to, or None."""
    if all(shape == shapes[0] for shape in shapes):
        return tuple(shapes[0])
    result = []
    for dim in range(-max(len(shape) for shape in shapes), 0):
        sizes = [shape[dim] for shape in shapes if len(shape) >= -dim and shape[dim] != 1]
        if any(size != sizes[0] for size in sizes):
            return None
        result.append(sizes[0] if sizes else 1)
    return tuple(result)


def _expanded_mask(attn_mask, shape, dtype):
    if attn_mask.ndim > len(shape) or _broadcast(attn_mask.shape, shape) != shape:
        raise ValueError(f"attention: attn_mask of shape {tuple(attn_mask.shape)} does not broadcast to {shape}")
    if attn_mask.is_floating_point() and (dtype == torch.float64 or attn_mask.requires_grad):
        # A gradient that is summed over broadcast dimensions keeps its precision until the sum is done.
        attn_mask = attn_mask.to(lse_dtype(dtype))
    return attn_mask.expand(shape)


def _as_4d(tensor, batch_shape, heads):
    """[..., heads or 1, length, dim] as [batch, heads, length, dim], without a copy where strides allow it"""
    if tensor.ndim == 4 and (tensor.shape[0],) == batch_shape and tensor.shape[1] == heads:
        return tensor
    length, dim = tensor.shape[-2:]
    return tensor.expand(*batch_shape, heads, length, dim).reshape(math.prod(batch_shape), heads, length, dim)


# ---- attention_forward -----------------------------------------------------------------------------------------------


def _allocate_forward(query, key, value, *rest):
    return (
        query.new_empty(*query.shape[:3], value.shape[3]),
        query.new_empty(*query.shape[:3], dtype=lse_dtype(query.dtype)),
    )


def _gpu_limits(query, value):
    if query.dtype == torch.float64:
        return "float64 is left to PyTorch on a GPU"
    widest, narrowest = max(query.shape[3], value.shape[3]), min(query.shape[3], value.shape[3])
    if widest > MAX_HEAD_DIM_GPU:
        return f"head_dim {widest} is above {MAX_HEAD_DIM_GPU}"
    return "head_dim 0 is left to PyTorch" if narrowest == 0 else None


def _gpu_supports_forward(query, key, value, *rest):
    return _gpu_limits(query, value)


def _cuda_supports_forward(query, key, value, *rest):
    return _gpu_limits(query, value) or _no_positions(*rest[-3:])


def _no_positions(alibi_slopes, window_left, window_right):
    if alibi_slopes is not None:
        return "alibi_slopes is left to Triton"
    return "window_size is left to Triton" if max(window_left, window_right) >= 0 else None


def _setup_forward(ctx, inputs, outputs):
    query, key, value, attn_mask, rng_state, *ctx.options, alibi_slopes, window_left, window_right = inputs
    ctx.window = (window_left, window_right)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, attn_mask, *outputs, rng_state, alibi_slopes)


def _backward_forward(ctx, grad_output, grad_lse):
    if grad_output is None and grad_lse is None:
        return (None,) * 11
    query, key, value, attn_mask, output, lse, rng_state, alibi_slopes = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    needs_mask_grad = ctx.needs_input_grad[3]
    inputs = (query, key, value, attn_mask, output, lse, rng_state)
    options = (*ctx.options, alibi_slopes, *ctx.window)
    *grads, grad_mask = attention_backward(grad_output, grad_lse, *inputs, *options, needs_mask_grad)
    return *grads, grad_mask if needs_mask_grad else None, *(None,) * 7


attention_forward = Kernel(
    "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? rng_state, float dropout_p, "
    "bool is_causal, float scale, Tensor? alibi_slopes, int window_left, int window_right) -> "
    "(Tensor output, Tensor lse)",
    module="attention",
    allocate=_allocate_forward,
    torch=attention_forward_torch,
    supports={"cpu": None, "triton": _gpu_supports_forward, "cuda": _cuda_supports_forward},
    setup_context=_setup_forward,
    backward=_backward_forward,
)


# ---- attention_backward ----------------------------------------------------------------------------------------------


def _allocate_backward(grad_output, grad_lse, query, key, value, attn_mask, *rest):
    needs_mask_grad = rest[-1]
    dense = (*query.shape[:3], key.shape[2])
    return (
        query.new_empty(*query.shape),
        key.new_empty(*key.shape),
        value.new_empty(*value.shape),
        attn_mask.new_empty(*dense) if needs_mask_grad else query.new_empty(0),
    )


def _gpu_supports_backward(grad_output, grad_lse, query, key, value, *rest):
    return _gpu_limits(query, value)


def _cuda_supports_backward(grad_output, grad_lse, query, key, value, *rest):
    return _gpu_limits(query, value) or _no_positions(*rest[-4:-1])


attention_backward = Kernel(
    "attention_backward(Tensor grad_output, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
    "Tensor? attn_mask, Tensor output, Tensor lse, Tensor? rng_state, float dropout_p, bool is_causal, float scale, "
    "Tensor? alibi_slopes, int window_left, int window_right, bool needs_mask_grad) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_attn_mask)",
    module="attention",
    allocate=_allocate_backward,
    torch=attention_backward_torch,
    supports={"cpu": None, "triton": _gpu_supports_backward, "cuda": _cuda_supports_backward},
    recompute=True,
)
