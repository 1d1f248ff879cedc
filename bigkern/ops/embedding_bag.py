"""embedding_bag: sums, means or maxima of the rows of a table that stand in one bag; the rows are never stored.

    sum   output[b] = sum over p in bag b of per_sample_weights[p] * weight[input[p]]
    mean  the sum divided by the number of rows in the bag
    max   the largest value of each column; of equal ones, the first gets the gradient

The gradient of the table is added up as `embedding`'s is: sorted by row, in the order of the input, in float32 at
least, without atomics. Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and
Recommendation Systems" (2019), for what it is used for.
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import statistics_dtype, triton_supports
from ..registration import Kernel, too_small
from .embedding import INDICES, check_table, hand_over_sparse, occurrence_counts

MODES = ("sum", "mean", "max")
# Below this many elements read from the table, a call is expected to cost more around its kernel than the kernel saves.
SMALL = 1 << 15
REASON = f"PyTorch's own function measured faster without gradients, and is taken below {SMALL} elements"


def embedding_bag(
    input,
    weight,
    offsets=None,
    max_norm=None,
    norm_type=2,
    scale_grad_by_freq=False,
    mode="mean",
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=None,
) -> torch.Tensor:
    """Sums, means or maxima of bags of rows of `weight`, as `torch.nn.functional.embedding_bag`.

    Args:
        input: int32 or int64 indices: [bags, length], or [count] with `offsets`.
        weight: floating [num_embeddings, embedding_dim].
        offsets: int32 or int64 [bags]: where each bag begins in a 1-D input, ascending from 0.
        max_norm, norm_type: as in `embedding`.
        scale_grad_by_freq: divide the gradient of a row by the number of times that it occurs in `input`; not for max.
        mode: "sum", "mean" or "max"; of an empty bag each is 0.
        sparse: the gradient is a sparse tensor. PyTorch's own function then runs, forward and backward.
        per_sample_weights: of input's shape and weight's dtype, for "sum" alone; may require grad. None: ones.
        include_last_offset: offsets is [bags + 1], and its last number is where the last bag ends.
        padding_idx: a row that counts for nothing and gets no gradient. None: every row counts.

    Returns:
        A contiguous tensor [bags, embedding_dim] of weight's dtype. Differentiable in weight and per_sample_weights,
        any number of times, with the same bits in every run.

    Raises:
        IndexError: an index is no row of weight. (On a GPU, its bag is NaN, and it has no gradient.)
        ValueError: shapes of input, offsets and per_sample_weights do not go together; an unknown mode; offsets that do
            not ascend from 0 to at most the length of input (on a GPU they are cut to that).
        NotImplementedError: per_sample_weights with another mode than "sum".
        AssertionError, RuntimeError: as `embedding`.
    """
    padding_idx = check_table("embedding_bag", input, weight, padding_idx)
    _check(input, weight, offsets, mode, per_sample_weights, include_last_offset, scale_grad_by_freq)
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight, input.contiguous(), max_norm, norm_type)
    small = (
        not sparse
        and input.is_cpu
        and (input.numel() * weight.shape[1] < SMALL or not (torch.is_grad_enabled() and weight.requires_grad))
        and too_small("embedding_bag", REASON, weight, input)
    )
    if sparse or small:
        if sparse:
            hand_over_sparse("embedding_bag", weight)
        return F.embedding_bag(
            input,
            weight,
            offsets,
            None,
            2,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx if padding_idx >= 0 else None,
        )
    if input.ndim == 2:
        offsets = torch.arange(input.shape[0], device=input.device) * input.shape[1]
    output, _, _ = embedding_bag_forward(
        input.reshape(-1),
        weight,
        offsets.long(),
        None if per_sample_weights is None else per_sample_weights.reshape(-1),
        mode,
        padding_idx,
        bool(scale_grad_by_freq),
        bool(include_last_offset),
    )
    return output


def _check(input, weight, offsets, mode, per_sample_weights, include_last_offset, scale_grad_by_freq):
    if mode not in MODES:
        raise ValueError("mode has to be one of sum, mean or max")
    if input.ndim == 2:
        if offsets is not None or include_last_offset:
            raise ValueError(
                "embedding_bag: if input is 2D, then offsets has to be None and include_last_offset False, as its rows "
                "are bags of one length"
            )
    elif input.ndim == 1:
        if offsets is None or offsets.ndim != 1:
            found = None if offsets is None else f"{offsets.ndim} dimensions"
            raise ValueError(f"embedding_bag: offsets has to be a 1D Tensor, got {found}")
        if offsets.dtype not in INDICES:
            raise RuntimeError(f"embedding_bag: offsets must be int32 or int64, got {offsets.dtype}")
        if offsets.device != input.device:
            raise RuntimeError(f"embedding_bag: offsets is on {offsets.device}, input on {input.device}")
        if include_last_offset and not len(offsets):
            raise ValueError("embedding_bag: offsets must hold the end of the last bag, got none")
    else:
        raise ValueError(f"embedding_bag: input has to be 1D or 2D Tensor, but got Tensor of dimension {input.ndim}")
    if scale_grad_by_freq and mode == "max":
        raise RuntimeError("embedding_bag: scale_grad_by_freq is not supported with mode 'max'")
    if per_sample_weights is None:
        return
    if mode != "sum":
        raise NotImplementedError(f"embedding_bag: per_sample_weights is only supported for mode='sum', got {mode!r}")
    if per_sample_weights.shape != input.shape:
        raise ValueError(
            f"embedding_bag: per_sample_weights has shape {tuple(per_sample_weights.shape)}, input {tuple(input.shape)}"
        )
    if per_sample_weights.dtype != weight.dtype:
        raise RuntimeError(
            f"embedding_bag: per_sample_weights must be {weight.dtype} as weight, got {per_sample_weights.dtype}"
        )


def _members(input, offsets, padding_idx, include_last_offset):
    """(bag of each occurrence, whether it counts there)"""
    bags = offsets.shape[0] - include_last_offset
    place = torch.arange(input.shape[0], device=input.device)
    bag = torch.searchsorted(offsets[:bags].contiguous(), place, right=True) - 1
    counts = (input != padding_idx) & (bag >= 0)
    if include_last_offset:
        counts = counts & (place < offsets[-1])
    return bag.clamp(min=0), counts


# ---- embedding_bag_backward ------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(
    grad_output,
    input,
    weight,
    offsets,
    per_sample_weights,
    bag_size,
    max_indices,
    mode,
    padding_idx,
    scale_grad_by_freq,
    include_last_offset,
    needs_weight_grad,
    needs_per_sample_weights_grad,
):
    return (
        weight.new_empty(weight.shape if needs_weight_grad else 0),
        weight.new_empty(input.shape if needs_per_sample_weights_grad else 0),
    )


def _backward_torch(
    grad_output,
    input,
    weight,
    offsets,
    per_sample_weights,
    bag_size,
    max_indices,
    mode,
    padding_idx,
    scale_grad_by_freq,
    include_last_offset,
    needs_weight_grad,
    needs_per_sample_weights_grad,
):
    wide = grad_output.to(statistics_dtype(weight.dtype))
    grad_weight = grad_samples = weight.new_empty(0)
    zeros = wide.new_zeros(weight.shape)
    if mode == "max":
        won = max_indices >= 0
        grad_weight = zeros.scatter_add(0, max_indices.where(won, 0), wide.where(won, 0))
        return grad_weight.to(weight.dtype) if needs_weight_grad else weight.new_empty(0), grad_samples
    bag, counts = _members(input, offsets, padding_idx, include_last_offset)
    if bag_size.shape[0] == 0:
        grads = wide.new_zeros(input.shape[0], wide.shape[1])
    else:
        if mode == "mean":
            wide = wide / bag_size.clamp(min=1)[:, None]
        grads = wide.index_select(0, bag).where(counts[:, None], 0)
    if needs_per_sample_weights_grad:
        grad_samples = (grads * weight.index_select(0, input).to(wide.dtype)).where(counts[:, None], 0).sum(1)
    if needs_weight_grad:
        if per_sample_weights is not None:
            grads = grads * per_sample_weights.to(wide.dtype)[:, None]
        if scale_grad_by_freq:
            grads = grads / occurrence_counts(input, weight.shape[0], wide.dtype)[:, None]
        grad_weight = zeros.index_add(0, input, grads)
    return grad_weight.to(weight.dtype), grad_samples.to(weight.dtype)


embedding_bag_backward = Kernel(
    "embedding_bag_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor offsets, "
    "Tensor? per_sample_weights, Tensor bag_size, Tensor max_indices, str mode, int padding_idx, "
    "bool scale_grad_by_freq, bool include_last_offset, bool needs_weight_grad, bool needs_per_sample_weights_grad) "
    "-> (Tensor grad_weight, Tensor grad_per_sample_weights)",
    module="embedding_bag",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, input, weight, *_: triton_supports(weight)},
    recompute=True,
)


# ---- embedding_bag_forward -------------------------------------------------------------------------------------------


def _allocate_forward(
    input, weight, offsets, per_sample_weights, mode, padding_idx, scale_grad_by_freq, include_last_offset
):
    bags, columns = offsets.shape[0] - include_last_offset, weight.shape[1]
    return (
        weight.new_empty(bags, columns),
        input.new_empty(bags, dtype=torch.int64),
        input.new_empty((bags, columns) if mode == "max" else 0, dtype=torch.int64),
    )


def _forward_torch(
    input, weight, offsets, per_sample_weights, mode, padding_idx, scale_grad_by_freq, include_last_offset
):
    bags = offsets.shape[0] - include_last_offset
    bag, counts = _members(input, offsets, padding_idx, include_last_offset)
    sizes = torch.zeros(bags, dtype=torch.int64, device=input.device)
    if bags:
        sizes = sizes.index_add(0, bag, counts.long())
    if mode == "max":
        padding = None if padding_idx < 0 else padding_idx
        output, _, _, winners = torch.embedding_bag(
            weight, input.long(), offsets, False, 2, False, None, include_last_offset, padding
        )
        return output, sizes, winners.masked_fill((sizes == 0)[:, None], -1)
    rows = weight.index_select(0, input).to(statistics_dtype(weight.dtype))
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.to(rows.dtype)[:, None]
    output = rows.new_zeros(bags, weight.shape[1])
    if bags:
        output = output.index_add(0, bag, rows.where(counts[:, None], 0))
    if mode == "mean":
        output = output / sizes.clamp(min=1)[:, None]
    return output.to(weight.dtype), sizes, sizes.new_empty(0)


def _setup_forward(ctx, inputs, outputs):
    input, weight, offsets, per_sample_weights, *ctx.options = inputs
    _, bag_size, max_indices = outputs
    ctx.mark_non_differentiable(bag_size, max_indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, offsets, per_sample_weights, bag_size, max_indices)


def _backward_forward(ctx, grad_output, _grad_bag_size, _grad_max_indices):
    if grad_output is None:
        return (None,) * 8
    _, needs_weight, _, needs_samples = ctx.needs_input_grad[:4]
    grad_weight, grad_samples = embedding_bag_backward(
        grad_output, *ctx.saved_tensors, *ctx.options, needs_weight, needs_samples
    )
    grads = (None, grad_weight if needs_weight else None, None, grad_samples if needs_samples else None)
    return *grads, *(None,) * 4


embedding_bag_forward = Kernel(
    "embedding_bag_forward(Tensor input, Tensor weight, Tensor offsets, Tensor? per_sample_weights, str mode, "
    "int padding_idx, bool scale_grad_by_freq, bool include_last_offset) "
    "-> (Tensor output, Tensor bag_size, Tensor max_indices)",
    module="embedding_bag",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, weight, *_: triton_supports(weight)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
