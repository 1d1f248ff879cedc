"""embedding_layer_norm: BERT's three embeddings, added, normalized and dropped out in one pass.

    sum    = word_weight[input] + position_weight[position_ids] + token_type_weight[token_type_ids]
    output = dropout(layer_norm(sum))

The sum is rounded to the tables' dtype, as it would be if it were stored; it is not. The backward looks the rows up
again, and draws the mask of dropout again from its counter (reference/philox.py). The gradients of the tables are added
up as `embedding`'s is: in one order, without atomics. Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding" (2018).
"""

import torch
import torch.nn.functional as F

from ..backends.torch_philox import dropout_keep_rows
from ..norm_arguments import check_norm, one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small
from ..rng import draw_rng_state
from .embedding import INDICES, check_table, embedding_backward
from .layer_norm import layer_norm_backward_torch, layer_norm_forward_torch

# Below this many elements, a call is expected to cost more around its kernel than the kernel saves.
SMALL = 1 << 16
SMALL_REASON = f"PyTorch's own functions measured faster below {SMALL} elements"
MOST_COLUMNS = 8192  # that a Triton program keeps in registers


def embedding_layer_norm(
    input,
    word_weight,
    position_weight,
    token_type_weight,
    weight=None,
    bias=None,
    token_type_ids=None,
    position_ids=None,
    padding_idx=None,
    eps=1e-12,
    dropout_p=0.0,
    training=True,
) -> torch.Tensor:
    """dropout(layer_norm(word + position + token type)), over the last dimension.

    Args:
        input: int32 or int64 word indices [..., length].
        word_weight: floating [words, columns].
        position_weight, token_type_weight: [positions, columns] and [token types, columns], of word_weight's dtype.
        weight, bias: [columns] or None, as in `layer_norm`.
        token_type_ids: int32 or int64, broadcast to input's shape; None: zeros.
        position_ids: int32 or int64, broadcast to input's shape; None: 0, 1, ... along the last dimension.
        padding_idx: a word that gets no gradient; negative ones count from the end. None: every word gets one.
        eps: added to the variance; BERT's 1e-12 unless given.
        dropout_p: the probability, in [0, 1], with which an element of the output is set to zero; the others are
            divided by 1 - dropout_p. Drawn from torch's generator on the tables' device.
        training: False: no dropout.

    Returns:
        A contiguous tensor [*input.shape, columns] of word_weight's dtype; float32 under autocast on CUDA.
        Differentiable in the three tables, weight and bias, any number of times.

    Raises:
        IndexError: an index is no row of its table. (On a GPU, where looking would stall it, its row of the output is
            NaN, and it has no gradient.)
        ValueError: dropout_p is outside [0, 1], or token_type_ids or position_ids do not broadcast to input's shape.
        AssertionError, RuntimeError: as `embedding` and `layer_norm`.
    """
    op = "embedding_layer_norm"
    padding_idx = check_table(op, input, word_weight, padding_idx)
    columns = word_weight.shape[1]
    check_norm(op, word_weight, [columns], weight, bias)
    for name, table in (("position_weight", position_weight), ("token_type_weight", token_type_weight)):
        _check_like(op, name, table, word_weight)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"{op}: dropout_p must be between 0 and 1, got {dropout_p}")
    if input.ndim == 0:
        raise RuntimeError(f"{op}: input must have a last dimension, the length, got a scalar")
    if position_ids is None:
        position_ids = torch.arange(input.shape[-1], device=input.device)
    if token_type_ids is None:
        token_type_ids = input.new_zeros(())
    position_ids = _like_input(op, "position_ids", position_ids, input)
    token_type_ids = _like_input(op, "token_type_ids", token_type_ids, input)
    dropped = training and dropout_p > 0
    if not (dropped and dropout_p < 1) and input.numel() * columns < SMALL:
        tables = (word_weight, position_weight, token_type_weight)
        if one_dtype(word_weight, weight, bias) and too_small(op, SMALL_REASON, *tables):
            padding = padding_idx if padding_idx >= 0 else None
            total = F.embedding(input, word_weight, padding) + F.embedding(token_type_ids, token_type_weight)
            total = total + F.embedding(position_ids, position_weight)
            return F.dropout(F.layer_norm(total, [columns], weight, bias, eps), dropout_p, dropped)
    drawn = dropped and dropout_p < 1
    output, _, _ = embedding_layer_norm_forward(
        input.reshape(-1),
        word_weight,
        position_ids.reshape(-1),
        position_weight,
        token_type_ids.reshape(-1),
        token_type_weight,
        weight,
        bias,
        draw_rng_state(word_weight.device) if drawn else None,
        padding_idx,
        float(eps),
        float(dropout_p) if drawn else 0.0,
    )
    output = output.view(*input.shape, columns)
    return F.dropout(output, 1.0) if dropped and not drawn else output


def _check_like(op, name, table, word_weight):
    if table.ndim != 2 or table.shape[1] != word_weight.shape[1]:
        raise RuntimeError(f"{op}: {name} must be [rows, {word_weight.shape[1]}], got {list(table.shape)}")
    if table.dtype != word_weight.dtype:
        raise RuntimeError(f"{op}: {name} must be {word_weight.dtype} as word_weight, got {table.dtype}")
    if table.device != word_weight.device:
        raise RuntimeError(f"{op}: {name} is on {table.device}, word_weight on {word_weight.device}")


def _like_input(op, name, ids, input):
    if ids.dtype not in INDICES:
        raise RuntimeError(f"{op}: {name} must be int32 or int64, got {ids.dtype}")
    if ids.device != input.device:
        raise RuntimeError(f"{op}: {name} is on {ids.device}, input on {input.device}")
    if ids.ndim > input.ndim or any(
        size not in (1, wanted) for size, wanted in zip(reversed(ids.shape), reversed(input.shape), strict=False)
    ):
        raise ValueError(f"{op}: {name} of shape {tuple(ids.shape)} does not broadcast to input's {tuple(input.shape)}")
    return ids.expand(input.shape)


def _sum_torch(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight):
    dtype = statistics_dtype(word_weight.dtype)
    pairs = ((word_weight, input), (position_weight, position_ids), (token_type_weight, token_type_ids))
    word, position, token_type = (table.index_select(0, ids).to(dtype) for table, ids in pairs)
    return (word + position + token_type).to(word_weight.dtype)


def _dropout_weight(rng_state, dropout_p, like):
    """What each element is multiplied by: 0, or 1 / (1 - dropout_p)"""
    return dropout_keep_rows(rng_state, dropout_p, *like.shape).to(like.dtype) / (1 - dropout_p)


# ---- embedding_layer_norm_backward -----------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(
    grad_output,
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    mean,
    rstd,
    rng_state,
    padding_idx,
    dropout_p,
    needs_table_grads,
    needs_weight_grad,
    needs_bias_grad,
):
    tables = (word_weight, position_weight, token_type_weight)
    return (
        *(table.new_empty(table.shape if needs_table_grads else 0) for table in tables),
        weight.new_empty(weight.shape) if needs_weight_grad else word_weight.new_empty(0),
        bias.new_empty(bias.shape) if needs_bias_grad else word_weight.new_empty(0),
    )


def _backward_torch(
    grad_output,
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    mean,
    rstd,
    rng_state,
    padding_idx,
    dropout_p,
    needs_table_grads,
    needs_weight_grad,
    needs_bias_grad,
):
    total = _sum_torch(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    wide = total.to(rstd.dtype)
    grad_output = grad_output.to(wide.dtype)
    if rng_state is not None:
        grad_output = grad_output * _dropout_weight(rng_state, dropout_p, wide)
    gradient, grad_weight, grad_bias = layer_norm_backward_torch(
        grad_output, wide, weight, bias, mean, rstd, needs_table_grads, needs_weight_grad, needs_bias_grad
    )
    none = total.new_empty(0)
    grads = [none] * 3
    if needs_table_grads:
        picked = (
            (word_weight, input, padding_idx),
            (position_weight, position_ids, -1),
            (token_type_weight, token_type_ids, -1),
        )
        grads = [
            embedding_backward.torch(gradient, ids, table.shape[0], padding, False)[0].to(table.dtype)
            for table, ids, padding in picked
        ]
    return *grads, grad_weight if needs_weight_grad else none, grad_bias if needs_bias_grad else none


def _triton_supports(word_weight):
    if word_weight.shape[1] > MOST_COLUMNS:
        return f"more than {MOST_COLUMNS} columns"
    return triton_supports(word_weight)


embedding_layer_norm_backward = Kernel(
    "embedding_layer_norm_backward(Tensor grad_output, Tensor input, Tensor word_weight, Tensor position_ids, "
    "Tensor position_weight, Tensor token_type_ids, Tensor token_type_weight, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, Tensor? rng_state, int padding_idx, float dropout_p, bool needs_table_grads, "
    "bool needs_weight_grad, bool needs_bias_grad) -> (Tensor grad_word_weight, Tensor grad_position_weight, "
    "Tensor grad_token_type_weight, Tensor grad_weight, Tensor grad_bias)",
    module="embedding_layer_norm",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, input, word_weight, *_: _triton_supports(word_weight)},
    recompute=True,
)


# ---- embedding_layer_norm_forward ------------------------------------------------------------------------------------


def _allocate_forward(input, word_weight, *_):
    rows, statistics = input.shape[0], statistics_dtype(word_weight.dtype)
    return (
        word_weight.new_empty(rows, word_weight.shape[1]),
        word_weight.new_empty(rows, dtype=statistics),
        word_weight.new_empty(rows, dtype=statistics),
    )


def _forward_torch(
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    rng_state,
    padding_idx,
    eps,
    dropout_p,
):
    total = _sum_torch(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    output, mean, rstd = layer_norm_forward_torch(total.to(statistics_dtype(total.dtype)), weight, bias, eps)
    if rng_state is not None:
        output = output * _dropout_weight(rng_state, dropout_p, output)
    return output.to(total.dtype), mean, rstd


def _setup_forward(ctx, inputs, outputs):
    *tensors, rng_state, ctx.padding_idx, _, ctx.dropout_p = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, mean, rstd, rng_state)


def _backward_forward(ctx, grad_output, _grad_mean, _grad_rstd):
    if grad_output is None:
        return (None,) * 12
    _, word, _, position, _, token_type, weight, bias = ctx.needs_input_grad[:8]
    grads = embedding_layer_norm_backward(
        grad_output,
        *ctx.saved_tensors,
        ctx.padding_idx,
        ctx.dropout_p,
        word or position or token_type,
        weight,
        bias,
    )
    needs = (word, position, token_type, weight, bias)
    word, position, token_type, weight, bias = (g if needed else None for g, needed in zip(grads, needs, strict=True))
    return None, word, None, position, None, token_type, weight, bias, *(None,) * 4


embedding_layer_norm_forward = Kernel(
    "embedding_layer_norm_forward(Tensor input, Tensor word_weight, Tensor position_ids, Tensor position_weight, "
    "Tensor token_type_ids, Tensor token_type_weight, Tensor? weight, Tensor? bias, Tensor? rng_state, "
    "int padding_idx, float eps, float dropout_p) -> (Tensor output, Tensor mean, Tensor rstd)",
    module="embedding_layer_norm",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, word_weight, *_: _triton_supports(word_weight)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast={"cuda": "float32"},
)
