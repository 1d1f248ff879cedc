"""Cross entropy of logits [N, C, D] without ever writing a softmax: one pass forward, one pass backward.

With m the row's maximum, s = sum_c exp(x_c - m) and log p_c = x_c - m - log(s), a row's loss is
    -(1 - label_smoothing) * w_t * log p_t  -  sum_c share_c * log p_c,
where share_c = w_c * label_smoothing / C for an index target t; for probabilities q the first term is absent and
share_c = w_c * (q_c * (1 - label_smoothing) + label_smoothing / C).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, block_size_for_row, num_warps_for, on_device_of

LOWEST = torch.finfo(torch.float32).min


class RowTile(NamedTuple):
    block_rows: int
    block_classes: int
    num_warps: int


def row_tile_for(num_classes, inner, has_shares, *class_strides):
    """A tile of neighbouring rows; `class_strides` are those of the tensors that it reads and writes."""
    # 32 rows of 2 or 4 bytes fill whole memory sectors where rows, not classes, are contiguous.
    largest = 4096 if all(stride == 1 for stride in class_strides) else 64
    block_classes = block_size_for_row(num_classes, largest)
    block_rows = block_size_for_row(inner, max(2048 // block_classes, 1))
    # Shares, and addresses that no two elements have in common, cost registers: half as many elements a thread.
    heavy = 2 if has_shares or block_rows > 1 else 1
    return RowTile(block_rows, block_classes, num_warps_for(heavy * block_rows * block_classes))


def row_view(tensor):
    """A tensor [N, ..., D] with its rows along the last dimension: [1, ..., N] where D is 1."""
    return tensor.transpose(0, -1) if tensor.shape[-1] == 1 else tensor


def row_strides(tensor):
    """Strides of a row_view; 0 for an outer dimension of 1, so that every offset stays provably aligned."""
    strides = tensor.stride()
    return (0, *strides[1:]) if tensor.shape[0] == 1 else strides


@triton.jit
def rows_of_program(num_inner, BLOCK_ROWS: tl.constexpr):
    """(outer index, inner indices [BLOCK_ROWS]) of this program's rows, as int64."""
    inner_blocks = tl.cdiv(num_inner, BLOCK_ROWS)
    outer = (tl.program_id(0) // inner_blocks).to(tl.int64)
    inner = (tl.program_id(0) % inner_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return outer, inner


@triton.jit
def load_index_target(target_ptr, target_offsets, weight_ptr, weight_stride, row_mask, num_classes, ignore_index):
    """(class, its weight, is ignored, is legal) of index targets; what is neither ignored nor legal gives NaN."""
    target = tl.load(target_ptr + target_offsets, mask=row_mask, other=ignore_index)
    ignored = target == ignore_index
    legal = (target >= 0) & (target < num_classes) & ~ignored
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + target * weight_stride, mask=legal, other=0).to(tl.float32)
    else:
        weight = tl.where(legal, 1.0, 0.0)
    return target, weight, ignored, legal


@triton.jit
def load_shares(
    target_ptrs, weight_ptr, weight_stride, classes, mask, num_classes, label_smoothing, HAS_PROBABILITIES: tl.constexpr
):
    """share_c [rows, classes], 0 outside of mask."""
    share = tl.zeros(mask.shape, dtype=tl.float32) + label_smoothing / num_classes
    if HAS_PROBABILITIES:
        probability = tl.load(target_ptrs, mask=mask, other=0).to(tl.float32)
        share += probability * (1.0 - label_smoothing)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + classes.to(tl.int64) * weight_stride, mask=classes < num_classes, other=0)
        share *= weight.to(tl.float32)[None, :]
    return tl.where(mask, share, 0.0)


@triton.jit
def cross_entropy_forward_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    lse_ptr,
    total_weight_ptr,
    num_inner,
    num_classes,
    input_outer_stride,
    input_class_stride,
    input_inner_stride,
    target_outer_stride,
    target_class_stride,
    target_inner_stride,
    weight_stride,
    ignore_index,
    label_smoothing,
    HAS_PROBABILITIES: tl.constexpr,
    HAS_SHARES: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """lse of each row; its loss, or that of each program's rows together (SUM_ROWS); weight of each program's rows."""
    outer, inner = rows_of_program(num_inner, BLOCK_ROWS)
    row_mask = inner < num_inner
    input_rows = outer * input_outer_stride + inner * input_inner_stride
    target_rows = outer * target_outer_stride + inner * target_inner_stride

    # Each lane keeps its own maximum and sum: the loop has no reduction across threads, and one exp per element, for
    # of exp(old maximum - new maximum) and exp(x - new maximum) one is always 1.
    maximum = tl.full((BLOCK_ROWS, BLOCK_CLASSES), LOWEST, dtype=tl.float32)
    exp_sum = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
    if HAS_SHARES:
        share_sum = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
        shared_logits = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
        # Logits may share a large offset; taking one of their size away keeps the digits of the sum.
        some_classes = tl.arange(0, BLOCK_CLASSES)
        some_offsets = input_rows[:, None] + some_classes.to(tl.int64)[None, :] * input_class_stride
        some_mask = row_mask[:, None] & (some_classes < num_classes)[None, :]
        some_logits = tl.load(input_ptr + some_offsets, mask=some_mask, other=-float("inf"))
        offset = tl.max(some_logits.to(tl.float32), axis=1)
        offset = tl.where(offset > LOWEST, offset, 0.0)
    for first_class in range(0, num_classes, BLOCK_CLASSES):
        classes = first_class + tl.arange(0, BLOCK_CLASSES)
        mask = row_mask[:, None] & (classes < num_classes)[None, :]
        input_offsets = input_rows[:, None] + classes.to(tl.int64)[None, :] * input_class_stride
        x = tl.load(input_ptr + input_offsets, mask=mask, other=-float("inf")).to(tl.float32)

        decay = tl.exp(-tl.abs(x - maximum))
        is_new = x > maximum
        exp_sum = tl.where(is_new, exp_sum * decay + 1.0, exp_sum + decay)
        maximum = tl.where(is_new, x, maximum)
        if HAS_SHARES:
            target_ptrs = target_ptr + target_rows[:, None] + classes.to(tl.int64)[None, :] * target_class_stride
            share = load_shares(
                target_ptrs, weight_ptr, weight_stride, classes, mask, num_classes, label_smoothing, HAS_PROBABILITIES
            )
            share_sum += share
            shared_logits += tl.where(mask, share * (x - offset[:, None]), 0.0)

    row_maximum = tl.max(maximum, axis=1)
    log_sum = tl.log(tl.sum(exp_sum * tl.exp(maximum - row_maximum[:, None]), axis=1))
    loss = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    row_weight = tl.where(row_mask, 1.0, 0.0)
    if HAS_SHARES:
        share_sum = tl.sum(share_sum, axis=1)
        loss += share_sum * log_sum - (tl.sum(shared_logits, axis=1) + (offset - row_maximum) * share_sum)
    if not HAS_PROBABILITIES:
        target, row_weight, ignored, legal = load_index_target(
            target_ptr, target_rows, weight_ptr, weight_stride, row_mask, num_classes, ignore_index
        )
        target_offsets = input_rows + target * input_class_stride
        target_logit = tl.load(input_ptr + target_offsets, mask=legal, other=0).to(tl.float32)
        loss += (1.0 - label_smoothing) * row_weight * (log_sum - (target_logit - row_maximum))
        loss = tl.where(ignored, 0.0, tl.where(legal, loss, float("nan")))

    rows = outer * num_inner + inner
    tl.store(lse_ptr + rows, row_maximum + log_sum, mask=row_mask)
    if SUM_ROWS:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
    else:
        tl.store(loss_ptr + rows, loss, mask=row_mask)
    tl.store(total_weight_ptr + tl.program_id(0), tl.sum(row_weight, axis=0))


@triton.jit
def cross_entropy_reduce_kernel(
    partial_loss_ptr,
    partial_weight_ptr,
    loss_ptr,
    total_weight_ptr,
    num_partials,
    REDUCTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums over all rows, by one program: one order of summation, unlike atomics."""
    losses = tl.zeros((BLOCK,), dtype=tl.float32)
    weights = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, num_partials, BLOCK):
        partials = first + tl.arange(0, BLOCK)
        mask = partials < num_partials
        weights += tl.load(partial_weight_ptr + partials, mask=mask, other=0)
        if REDUCTION != "none":
            losses += tl.load(partial_loss_ptr + partials, mask=mask, other=0)
    total_weight = tl.sum(weights, axis=0)
    tl.store(total_weight_ptr, total_weight)
    if REDUCTION == "sum":
        tl.store(loss_ptr, tl.sum(losses, axis=0))
    elif REDUCTION == "mean":
        tl.store(loss_ptr, tl.sum(losses, axis=0) / total_weight)


@triton.jit
def max_and_log_sum(
    input_ptr,
    input_rows,
    input_class_stride,
    row_mask,
    num_classes,
    LOWEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """(maximum m of each row, log sum_c exp(x_c - m)): what lse is the rounded sum of."""
    maximum = tl.full((BLOCK_ROWS, BLOCK_CLASSES), LOWEST, dtype=tl.float32)
    exp_sum = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
    for first_class in range(0, num_classes, BLOCK_CLASSES):
        classes = first_class + tl.arange(0, BLOCK_CLASSES)
        mask = row_mask[:, None] & (classes < num_classes)[None, :]
        input_offsets = input_rows[:, None] + classes.to(tl.int64)[None, :] * input_class_stride
        x = tl.load(input_ptr + input_offsets, mask=mask, other=-float("inf")).to(tl.float32)
        decay = tl.exp(-tl.abs(x - maximum))
        is_new = x > maximum
        exp_sum = tl.where(is_new, exp_sum * decay + 1.0, exp_sum + decay)
        maximum = tl.where(is_new, x, maximum)
    row_maximum = tl.max(maximum, axis=1)
    return row_maximum, tl.log(tl.sum(exp_sum * tl.exp(maximum - row_maximum[:, None]), axis=1))


@triton.jit
def cross_entropy_backward_kernel(
    grad_loss_ptr,
    input_ptr,
    target_ptr,
    weight_ptr,
    lse_ptr,
    total_weight_ptr,
    grad_input_ptr,
    grad_target_ptr,
    num_inner,
    num_classes,
    grad_loss_outer_stride,
    grad_loss_inner_stride,
    input_outer_stride,
    input_class_stride,
    input_inner_stride,
    target_outer_stride,
    target_class_stride,
    target_inner_stride,
    grad_outer_stride,
    grad_class_stride,
    grad_inner_stride,
    weight_stride,
    ignore_index,
    label_smoothing,
    HAS_PROBABILITIES: tl.constexpr,
    HAS_SHARES: tl.constexpr,
    IS_MEAN: tl.constexpr,
    IS_FLOAT32: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """grad_input_c = grad_loss * ((sum of all coefficients) * p_c - coefficient_c), from the logits and lse."""
    outer, inner = rows_of_program(num_inner, BLOCK_ROWS)
    row_mask = inner < num_inner
    input_rows = outer * input_outer_stride + inner * input_inner_stride
    target_rows = outer * target_outer_stride + inner * target_inner_stride
    grad_rows = outer * grad_outer_stride + inner * grad_inner_stride
    # exp(x - lse) inherits lse's rounding error, which grows with |lse| and, next to 1, hides a confident
    # prediction's whole gradient. Then the sums are taken anew, from a row that the next pass finds in the cache.
    # 16-bit results show none of it while |lse| is within reason.
    shift = tl.load(lse_ptr + outer * num_inner + inner, mask=row_mask, other=0)
    log_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    if IS_FLOAT32 or tl.max(tl.abs(shift), axis=0) > 4096:
        shift, log_sum = max_and_log_sum(
            input_ptr, input_rows, input_class_stride, row_mask, num_classes, LOWEST, BLOCK_ROWS, BLOCK_CLASSES
        )
    grad_loss_offsets = outer * grad_loss_outer_stride + inner * grad_loss_inner_stride
    grad_loss = tl.load(grad_loss_ptr + grad_loss_offsets, mask=row_mask, other=0).to(tl.float32)
    if IS_MEAN:
        grad_loss /= tl.load(total_weight_ptr)

    coefficient_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    if not HAS_PROBABILITIES:
        target, target_weight, ignored, legal = load_index_target(
            target_ptr, target_rows, weight_ptr, weight_stride, row_mask, num_classes, ignore_index
        )
        target_weight *= 1.0 - label_smoothing
        coefficient_sum += target_weight
        grad_loss = tl.where(ignored, 0.0, tl.where(legal, grad_loss, float("nan")))
    if HAS_SHARES and (HAS_PROBABILITIES or weight_ptr is not None):
        share_sum = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
        for first_class in range(0, num_classes, BLOCK_CLASSES):
            classes = first_class + tl.arange(0, BLOCK_CLASSES)
            mask = row_mask[:, None] & (classes < num_classes)[None, :]
            target_ptrs = target_ptr + target_rows[:, None] + classes.to(tl.int64)[None, :] * target_class_stride
            share_sum += load_shares(
                target_ptrs, weight_ptr, weight_stride, classes, mask, num_classes, label_smoothing, HAS_PROBABILITIES
            )
        coefficient_sum += tl.sum(share_sum, axis=1)
    elif HAS_SHARES:
        coefficient_sum += label_smoothing

    for first_class in range(0, num_classes, BLOCK_CLASSES):
        classes = first_class + tl.arange(0, BLOCK_CLASSES)
        mask = row_mask[:, None] & (classes < num_classes)[None, :]
        input_offsets = input_rows[:, None] + classes.to(tl.int64)[None, :] * input_class_stride
        x = tl.load(input_ptr + input_offsets, mask=mask, other=0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_CLASSES]

        coefficient = tl.zeros((BLOCK_ROWS, BLOCK_CLASSES), dtype=tl.float32)
        if not HAS_PROBABILITIES:
            coefficient += tl.where(classes[None, :] == target[:, None], target_weight[:, None], 0.0)
        if HAS_SHARES:
            target_ptrs = target_ptr + target_rows[:, None] + classes.to(tl.int64)[None, :] * target_class_stride
            coefficient += load_shares(
                target_ptrs, weight_ptr, weight_stride, classes, mask, num_classes, label_smoothing, HAS_PROBABILITIES
            )

        grad_offsets = grad_rows[:, None] + classes.to(tl.int64)[None, :] * grad_class_stride
        log_p = (x - shift[:, None]) - log_sum[:, None]
        grad_logits = coefficient_sum[:, None] * tl.exp(log_p) - coefficient
        tl.store(grad_input_ptr + grad_offsets, grad_loss[:, None] * grad_logits, mask=mask)
        if grad_target_ptr is not None:
            grad_target = grad_loss[:, None] * (label_smoothing - 1.0) * log_p
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + classes.to(tl.int64) * weight_stride, mask=classes < num_classes, other=0)
                grad_target *= weight.to(tl.float32)[None, :]
            tl.store(grad_target_ptr + grad_offsets, grad_target, mask=mask)


def target_strides(target):
    """(outer, class, inner) strides of index or probability targets; index targets have no class."""
    strides = row_strides(row_view(target))
    return strides if target.is_floating_point() else (strides[0], 0, strides[1])


def cross_entropy_forward(input, target, weight, ignore_index, reduction, label_smoothing, loss, lse, total_weight):
    rows = row_view(input)
    outer, num_classes, inner = rows.shape
    strides = row_strides(rows)
    has_probabilities = target.is_floating_point()
    has_shares = has_probabilities or label_smoothing != 0
    tile = row_tile_for(num_classes, inner, has_shares, strides[1])
    num_programs = outer * triton.cdiv(inner, tile.block_rows)
    partial_loss, partial_weight = torch.empty(2, num_programs, dtype=torch.float32, device=input.device)
    with on_device_of(input):
        if num_programs > 0:
            cross_entropy_forward_kernel[(num_programs,)](
                input,
                target,
                weight,
                loss if reduction == "none" else partial_loss,
                lse,
                partial_weight,
                inner,
                num_classes,
                *strides,
                *target_strides(target),
                0 if weight is None else weight.stride(0),
                ignore_index,
                label_smoothing,
                HAS_PROBABILITIES=has_probabilities,
                HAS_SHARES=has_shares,
                SUM_ROWS=reduction != "none",
                LOWEST=LOWEST,
                BLOCK_ROWS=tile.block_rows,
                BLOCK_CLASSES=tile.block_classes,
                num_warps=tile.num_warps,
                **COMPILE_OPTIONS,
            )
        cross_entropy_reduce_kernel[(1,)](
            partial_loss,
            partial_weight,
            loss,
            total_weight,
            num_programs,
            REDUCTION=reduction,
            BLOCK=block_size_for_row(num_programs, 4096),
            num_warps=8,
            **COMPILE_OPTIONS,
        )
    if num_classes == 0 and has_probabilities and reduction != "mean":
        loss.zero_()  # a sum of nothing


def cross_entropy_backward(
    grad_loss,
    input,
    target,
    weight,
    lse,
    total_weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_target_grad,
    grad_input,
    grad_target,
):
    if input.numel() == 0:
        return
    rows, grad_rows = row_view(input), row_view(grad_input)
    outer, num_classes, inner = rows.shape
    strides, grad_strides = row_strides(rows), row_strides(grad_rows)
    has_probabilities = target.is_floating_point()
    has_shares = has_probabilities or label_smoothing != 0
    tile = row_tile_for(num_classes, inner, has_shares, strides[1], grad_strides[1])
    with on_device_of(input):
        cross_entropy_backward_kernel[(outer * triton.cdiv(inner, tile.block_rows),)](
            grad_loss,
            input,
            target,
            weight,
            lse.contiguous(),
            total_weight,
            grad_input,
            grad_target if needs_target_grad else None,
            inner,
            num_classes,
            *(row_strides(row_view(grad_loss)) if reduction == "none" else (0, 0)),
            *strides,
            *target_strides(target),
            *grad_strides,
            0 if weight is None else weight.stride(0),
            ignore_index,
            label_smoothing,
            HAS_PROBABILITIES=has_probabilities,
            HAS_SHARES=has_shares,
            IS_MEAN=reduction == "mean",
            IS_FLOAT32=input.dtype == torch.float32,
            LOWEST=LOWEST,
            BLOCK_ROWS=tile.block_rows,
            BLOCK_CLASSES=tile.block_classes,
            num_warps=tile.num_warps,
            **COMPILE_OPTIONS,
        )
