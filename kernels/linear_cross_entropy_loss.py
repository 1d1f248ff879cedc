"""The loss alone of linear_cross_entropy: one kernel walks the classes, and of every row four numbers are kept."""

import torch
import triton
import triton.language as tl

from .common import (
    COMPILE_OPTIONS,
    INTERPRET,
    arch_of,
    block_size_for_row,
    num_multiprocessors,
    num_warps_for,
)
from .cross_entropy import (
    LOWEST,
    cross_entropy_reduce_kernel,
    load_index_target,
)
from .linear_act import matmul_tile_for, multiply_tile

SUMS = 4  # numbers that a part of a row's classes leaves: maximum, exp_sum, gap, own logit


def class_parts_for(row_blocks, class_blocks, num_programs):
    """Into how many parts to cut the classes, so that few rows still give every multiprocessor work."""
    return max(min(num_programs // max(row_blocks, 1), class_blocks, 64), 1)


@triton.jit
def linear_cross_entropy_sums_kernel(
    input_ptr,
    linear_weight_ptr,
    linear_bias_ptr,
    target_ptr,
    weight_ptr,
    sums_ptr,
    num_rows,
    num_classes,
    num_features,
    classes_per_part,
    input_row_stride,
    input_feature_stride,
    linear_weight_class_stride,
    linear_weight_feature_stride,
    linear_bias_stride,
    target_stride,
    weight_stride,
    spread,
    HAS_SHARES: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums[part, :, row] over one part of the classes; the shares of label smoothing are spread * weight_c."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    first_class = part * classes_per_part
    last_class = tl.minimum(first_class + classes_per_part, num_classes)
    row_mask = rows < num_rows
    target = tl.load(target_ptr + rows * target_stride, mask=row_mask, other=-1)

    maximum = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    exp_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    gap = tl.zeros((BLOCK_M,), dtype=tl.float32)  # sum of share * (maximum - logit)
    share_sum = 0.0
    own_logit = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for block_class in range(first_class, last_class, BLOCK_N):
        classes = (block_class + tl.arange(0, BLOCK_N)).to(tl.int64)
        class_mask = classes < last_class
        logits = multiply_tile(
            input_ptr,
            linear_weight_ptr,
            rows,
            classes,
            0,
            num_features,
            num_rows,
            num_classes,
            input_row_stride,
            input_feature_stride,
            linear_weight_feature_stride,
            linear_weight_class_stride,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            EVEN_K,
            UPCAST,
            tl.float32,
        )  # [BLOCK_M, BLOCK_N]
        if linear_bias_ptr is not None:
            bias = tl.load(linear_bias_ptr + classes * linear_bias_stride, mask=class_mask, other=0)
            logits += bias.to(tl.float32)[None, :]
        logits = tl.where(class_mask[None, :], logits, -float("inf"))
        own_logit += tl.sum(tl.where(classes[None, :] == target[:, None], logits, 0.0), axis=1)
        larger = tl.maximum(maximum, tl.max(logits, axis=1))  # a NaN loses here, and shows in the sum
        below = logits - larger[:, None]
        exp_sum = exp_sum * tl.exp(maximum - larger) + tl.sum(tl.exp(below), axis=1)
        if HAS_SHARES:
            share = tl.where(class_mask, spread, 0.0)
            if weight_ptr is not None:
                share *= tl.load(weight_ptr + classes * weight_stride, mask=class_mask, other=0).to(tl.float32)
            gap += share_sum * tl.minimum(larger - maximum, -LOWEST)  # 0 * inf would be NaN
            gap += tl.sum(tl.where(class_mask[None, :], -share[None, :] * below, 0.0), axis=1)
            share_sum += tl.sum(share, axis=0)
        maximum = larger

    offsets = part.to(tl.int64) * 4 * num_rows + rows
    tl.store(sums_ptr + offsets, maximum, mask=row_mask)
    tl.store(sums_ptr + offsets + num_rows, exp_sum, mask=row_mask)
    tl.store(sums_ptr + offsets + 2 * num_rows, gap, mask=row_mask)
    tl.store(sums_ptr + offsets + 3 * num_rows, own_logit, mask=row_mask)


@triton.jit
def linear_cross_entropy_loss_kernel(
    sums_ptr,
    part_shares_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    partial_weight_ptr,
    num_rows,
    num_classes,
    num_parts,
    target_stride,
    weight_stride,
    ignore_index,
    label_smoothing,
    HAS_SHARES: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """The parts of each row put together: its loss, or that of each program's rows; weight of each program's rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < num_rows
    maximum = tl.full((BLOCK_ROWS,), LOWEST, dtype=tl.float32)
    exp_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    gap = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    own_logit = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    share_sum = 0.0
    for part in range(0, num_parts):
        offsets = rows + tl.full((), part, tl.int64) * 4 * num_rows
        part_maximum = tl.load(sums_ptr + offsets, mask=row_mask, other=LOWEST)
        part_exp_sum = tl.load(sums_ptr + offsets + num_rows, mask=row_mask, other=0)
        own_logit += tl.load(sums_ptr + offsets + 3 * num_rows, mask=row_mask, other=0)
        larger = tl.maximum(maximum, part_maximum)
        exp_sum = exp_sum * tl.exp(maximum - larger) + part_exp_sum * tl.exp(part_maximum - larger)
        if HAS_SHARES:
            part_share = tl.load(part_shares_ptr + part)
            gap += share_sum * tl.minimum(larger - maximum, -LOWEST)
            gap += tl.load(sums_ptr + offsets + 2 * num_rows, mask=row_mask, other=0)
            gap += part_share * tl.minimum(larger - part_maximum, -LOWEST)
            share_sum += part_share
        maximum = larger
    log_sum = tl.log(exp_sum)
    _, row_weight, ignored, legal = load_index_target(
        target_ptr, rows * target_stride, weight_ptr, weight_stride, row_mask, num_classes, ignore_index
    )
    loss = (1.0 - label_smoothing) * row_weight * (log_sum - (own_logit - maximum))
    if HAS_SHARES:
        loss += gap + share_sum * log_sum
    loss = tl.where(ignored, 0.0, tl.where(legal, loss, float("nan")))
    if SUM_ROWS:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
    else:
        tl.store(loss_ptr + rows, loss, mask=row_mask)
    tl.store(partial_weight_ptr + tl.program_id(0), tl.sum(row_weight, axis=0))


def launch_loss(input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing, loss):
    """The loss alone: no logit is ever stored."""
    (num_rows, num_features), num_classes = input.shape, linear_weight.shape[0]
    tile = matmul_tile_for(
        num_rows, num_classes, input.element_size(), "gelu", arch_of(input.device), num_multiprocessors(input.device)
    )
    has_shares = label_smoothing != 0
    if has_shares and tile.block_n > 64:  # the shares' sums need registers
        tile = tile._replace(block_n=tile.block_n // 2)
    row_blocks, class_blocks = triton.cdiv(num_rows, tile.block_m), triton.cdiv(num_classes, tile.block_n)
    parts = class_parts_for(row_blocks, class_blocks, num_multiprocessors(input.device))
    classes_per_part = triton.cdiv(class_blocks, parts) * tile.block_n
    parts = max(triton.cdiv(num_classes, classes_per_part), 1) if classes_per_part else 1
    sums = torch.empty(parts, SUMS, num_rows, dtype=torch.float32, device=input.device)
    part_shares = None
    spread = label_smoothing / max(num_classes, 1)
    if has_shares:
        shares = torch.full((parts * classes_per_part,), spread, dtype=torch.float32, device=input.device)
        if weight is not None:
            shares[:num_classes] *= weight
        shares[num_classes:] = 0
        part_shares = shares.view(parts, classes_per_part).sum(1)
    weight_stride = 0 if weight is None else weight.stride(0)
    block_rows = block_size_for_row(num_rows, 256)
    num_programs = triton.cdiv(num_rows, block_rows)
    partial_loss, partial_weight = torch.empty(2, num_programs, dtype=torch.float32, device=input.device)
    if num_rows > 0:
        linear_cross_entropy_sums_kernel[(row_blocks, parts)](
            input,
            linear_weight,
            linear_bias,
            target,
            weight,
            sums,
            num_rows,
            num_classes,
            num_features,
            classes_per_part,
            *input.stride(),
            *linear_weight.stride(),
            0 if linear_bias is None else linear_bias.stride(0),
            target.stride(0),
            weight_stride,
            spread,
            HAS_SHARES=has_shares,
            LOWEST=LOWEST,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            EVEN_K=num_features % tile.block_k == 0,
            UPCAST=INTERPRET,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **COMPILE_OPTIONS,
        )
        linear_cross_entropy_loss_kernel[(num_programs,)](
            sums,
            part_shares,
            target,
            weight,
            loss if reduction == "none" else partial_loss,
            partial_weight,
            num_rows,
            num_classes,
            parts,
            target.stride(0),
            weight_stride,
            ignore_index,
            label_smoothing,
            HAS_SHARES=has_shares,
            SUM_ROWS=reduction != "none",
            LOWEST=LOWEST,
            BLOCK_ROWS=block_rows,
            num_warps=num_warps_for(block_rows),
            **COMPILE_OPTIONS,
        )
    if reduction != "none":
        cross_entropy_reduce_kernel[(1,)](
            partial_loss,
            partial_weight,
            loss,
            torch.empty((), dtype=torch.float32, device=input.device),
            num_programs,
            REDUCTION=reduction,
            BLOCK=block_size_for_row(num_programs, 4096),
            num_warps=8,
            **COMPILE_OPTIONS,
        )
