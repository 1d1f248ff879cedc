"""attention_varlen: attention over sequences of different lengths that lie one after the other, without padding.

    output[rows of s] = attention(query[rows of s], key[rows of s], value[rows of s])      for each sequence s

Equal to padding the sequences and masking the padding, without the work for it: the tile kernels of `attention` walk
over (sequence, head, block of queries). Source: Dao, "FlashAttention-2" (2023), whose arguments these are.

Second derivatives are taken by a loop over the sequences, eagerly; under torch.compile, which does not know their
lengths, they raise.
"""

import math

import torch

from ..backends.torch_attention_varlen import attention_varlen_backward_torch, attention_varlen_forward_torch
from ..registration import Kernel, autocast_enabled, cast_floating
from .attention import FLOATING, MAX_HEAD_DIM_GPU, NO_WINDOW, checked_slopes, checked_window, lse_dtype


def attention_varlen(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    is_causal=False,
    scale=None,
    *,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> torch.Tensor:
    """Scaled dot product attention of packed sequences.

    Args:
        query: floating [total_q, heads, head_dim]: the tokens of all sequences.
        key: [total_k, kv_heads, head_dim], of query's dtype. Each kv head serves heads / kv_heads neighbouring ones of
            query.
        value: [total_k, kv_heads, value_dim], of query's dtype.
        cu_seqlens_q: int32 [sequences + 1], rising from 0 to at most total_q: sequence s owns rows cu_seqlens_q[s] to
            cu_seqlens_q[s + 1] of query. Rows beyond belong to no sequence, give zeros and get no gradient.
        cu_seqlens_k: the same for key and value.
        max_seqlen_q, max_seqlen_k: the longest sequence, or more. None: total_q, total_k. On a GPU too large a number
            costs time, and too small a one drops rows; on a CPU they do not matter.
        is_causal: token j of a sequence is visible to its token i where j <= i (top left, as in `attention`).
        scale: the factor of the scores; None: 1 / sqrt(head_dim).
        window_size, alibi_slopes: as in `attention`, within each sequence; alibi_slopes [heads] or [sequences, heads].

    Returns:
        [total_q, heads, value_dim] in query's dtype. A query that sees no key gives zeros.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: shapes that do not fit, several devices, alibi_slopes that want a gradient; on a CPU, cu_seqlens
            that do not rise from 0 to at most the number of rows (a GPU cannot look at them without waiting).
    """
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    place = {"window_size": window_size, "alibi_slopes": alibi_slopes}
    return attention_varlen_with_lse(query, key, value, *lengths, is_causal, scale, **place)[0]


def attention_varlen_with_lse(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q=None,
    max_seqlen_k=None,
    is_causal=False,
    scale=None,
    *,
    window_size=NO_WINDOW,
    alibi_slopes=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_varlen`, and the natural logarithm of each row's sum of exponentials.

    Arguments and errors are those of `attention_varlen`.

    Returns:
        (output [total_q, heads, value_dim], lse [heads, total_q]); lse is float32 (float64 for float64 input), -inf
        where a query sees no key, and has a gradient.
    """
    op, device = "attention_varlen", query.device.type
    if autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (cast_floating(tensor, dtype) for tensor in (query, key, value))
    _check_tensors(op, query, key, value, cu_seqlens_q, cu_seqlens_k)
    is_causal, left, right = checked_window(op, window_size, is_causal)
    if alibi_slopes is not None:
        sequences = query.new_empty(0).expand(len(cu_seqlens_q) - 1, query.shape[1], 0)
        alibi_slopes = checked_slopes(op, alibi_slopes, sequences)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[2]) if query.shape[2] else 1.0
    return attention_varlen_forward(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        query.shape[0] if max_seqlen_q is None else int(max_seqlen_q),
        key.shape[0] if max_seqlen_k is None else int(max_seqlen_k),
        is_causal,
        float(scale),
        alibi_slopes,
        left,
        right,
    )


def _check_tensors(op, query, key, value, cu_seqlens_q, cu_seqlens_k):
    if query.dtype not in FLOATING:
        raise TypeError(f"{op}: query must be floating, got {query.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"{op}: query, key and value must have the same dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 3:
            raise ValueError(f"{op}: {name} must be [tokens, heads, dim], got {list(tensor.shape)}")
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if tensor.dtype != torch.int32 or tensor.ndim != 1 or len(tensor) == 0:
            raise ValueError(
                f"{op}: {name} must be torch.int32 [sequences + 1], got {tensor.dtype} {list(tensor.shape)}"
            )
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(f"{op}: cu_seqlens_q has {len(cu_seqlens_q)} elements, cu_seqlens_k has {len(cu_seqlens_k)}")
    for tensor in (key, value, cu_seqlens_q, cu_seqlens_k):
        if tensor.device != query.device:
            raise ValueError(f"{op}: all tensors must be on {query.device}, got {tensor.device}")
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"{op}: query has head_dim {query.shape[2]}, key has {key.shape[2]}")
    if key.shape[:2] != value.shape[:2]:
        raise ValueError(f"{op}: key is {list(key.shape[:2])} and value {list(value.shape[:2])}, before the last size")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads if kv_heads else heads:
        raise ValueError(f"{op}: {heads} heads of query are no multiple of {kv_heads} heads of key and value")


# ---- attention_varlen_forward ----------------------------------------------------------------------------------------


def _allocate_forward(query, key, value, *rest):
    return (
        query.new_empty(*query.shape[:2], value.shape[2]),
        query.new_empty(query.shape[1], query.shape[0], dtype=lse_dtype(query.dtype)),
    )


def _triton_limits(query, value):
    if query.dtype == torch.float64:
        return "float64 is left to PyTorch on a GPU"
    widest, narrowest = max(query.shape[2], value.shape[2]), min(query.shape[2], value.shape[2])
    if widest > MAX_HEAD_DIM_GPU:
        return f"head_dim {widest} is above {MAX_HEAD_DIM_GPU}"
    return "head_dim 0 is left to PyTorch" if narrowest == 0 else None


def _triton_supports_forward(query, key, value, *rest):
    return _triton_limits(query, value)


def _setup_forward(ctx, inputs, outputs):
    query, key, value, cu_seqlens_q, cu_seqlens_k, *options, alibi_slopes, left, right = inputs
    ctx.options, ctx.window = options, (left, right)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *outputs, cu_seqlens_q, cu_seqlens_k, alibi_slopes)


def _backward_forward(ctx, grad_output, grad_lse):
    if grad_output is None and grad_lse is None:
        return (None,) * 12
    *inputs, alibi_slopes = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(inputs[3])
    grads = attention_varlen_backward(grad_output, grad_lse, *inputs, *ctx.options, alibi_slopes, *ctx.window)
    return *grads, *(None,) * 9


attention_varlen_forward = Kernel(
    "attention_varlen_forward(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, bool is_causal, float scale, Tensor? alibi_slopes, int window_left, "
    "int window_right) -> (Tensor output, Tensor lse)",
    module="attention_varlen",
    allocate=_allocate_forward,
    torch=attention_varlen_forward_torch,
    supports={"cpu": None, "triton": _triton_supports_forward},
    setup_context=_setup_forward,
    backward=_backward_forward,
)


# ---- attention_varlen_backward ---------------------------------------------------------------------------------------


def _allocate_backward(grad_output, grad_lse, query, key, value, *rest):
    return query.new_empty(*query.shape), key.new_empty(*key.shape), value.new_empty(*value.shape)


def _triton_supports_backward(grad_output, grad_lse, query, key, value, *rest):
    return _triton_limits(query, value)


attention_varlen_backward = Kernel(
    "attention_varlen_backward(Tensor grad_output, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
    "Tensor output, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "bool is_causal, float scale, Tensor? alibi_slopes, int window_left, int window_right) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    module="attention_varlen",
    allocate=_allocate_backward,
    torch=attention_varlen_backward_torch,
    supports={"cpu": None, "triton": _triton_supports_backward},
    recompute=True,
)
