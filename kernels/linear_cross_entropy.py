"""Cross entropy of input [N, K] @ linear_weight [C, K].T with its gradients, and without the logits as a whole.

Gradients take chunks of rows, whose logits exist one chunk at a time: product, loss and gradient of the logits
(kernels/cross_entropy.py), two products. The loss alone is in linear_cross_entropy_loss.py.
"""

import torch
import triton
import triton.language as tl

from .common import (
    COMPILE_OPTIONS,
    INTERPRET,
    arch_of,
    num_multiprocessors,
    on_device_of,
)
from .cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
)
from .linear_act import GROUP_M, launch_linear_act, matmul_tile_for, multiply_tile, tile_of_program
from .linear_cross_entropy_loss import launch_loss

CHUNK_BYTES = 256 << 20  # logits of one chunk of rows, in float32
FEWEST_CHUNK_ROWS = 256  # below, the products no longer fill the chip


def chunk_rows_for(num_rows, num_classes):
    """How many rows' logits may exist at a time."""
    rows = max(CHUNK_BYTES // (4 * max(num_classes, 1)), FEWEST_CHUNK_ROWS)
    return max(min(rows, num_rows), 1)


@triton.jit
def add_product_kernel(
    a_ptr,
    b_ptr,
    sums_ptr,
    M,
    N,
    K,
    a_row_stride,
    a_k_stride,
    b_k_stride,
    b_col_stride,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums[M, N] (+)= a[M, K] @ b[K, N], in fp32."""
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = multiply_tile(
        a_ptr,
        b_ptr,
        rows,
        cols,
        0,
        K,
        M,
        N,
        a_row_stride,
        a_k_stride,
        b_k_stride,
        b_col_stride,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        UPCAST,
        tl.float32,
    )  # [BLOCK_M, BLOCK_N]
    sums_ptrs = sums_ptr + rows[:, None] * N + cols[None, :]
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    if ADD:
        product += tl.load(sums_ptrs, mask=mask, other=0)
    tl.store(sums_ptrs, product, mask=mask)


def launch_add_product(a, b, sums, add):
    """sums [M, N] (+)= a [M, K] @ b [K, N]; fp32 sums, contiguous."""
    (M, K), N = a.shape, b.shape[1]
    if M == 0 or N == 0:
        return
    # As for an activation that leaves few registers: the old sums are read beside the new.
    tile = matmul_tile_for(M, N, a.element_size(), "gelu", arch_of(a.device), num_multiprocessors(a.device))
    add_product_kernel[(triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n),)](
        a,
        b,
        sums,
        M,
        N,
        K,
        *a.stride(),
        *b.stride(),
        ADD=add,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=GROUP_M,
        EVEN_K=K % tile.block_k == 0,
        UPCAST=INTERPRET,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **COMPILE_OPTIONS,
    )


def launch_chunks(
    row_scale,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    label_smoothing,
    row_loss,
    grad_input,
    grad_weight,
    grad_bias,
):
    """Gradients of sum(row_scale * loss) and the losses of the rows, [N] in fp32; gradients may be None."""
    (num_rows, num_features), num_classes = input.shape, linear_weight.shape[0]
    chunk_rows = chunk_rows_for(num_rows, num_classes)
    device = input.device
    logits = torch.empty(chunk_rows, num_classes, dtype=torch.float32, device=device)
    grad_logits = torch.empty(chunk_rows, num_classes, dtype=input.dtype, device=device)
    lse = torch.empty(chunk_rows, 1, dtype=torch.float32, device=device)
    unused = torch.empty((), dtype=torch.float32, device=device)
    weight_sums = bias_sums = None
    if grad_weight is not None:
        in_place = grad_weight.dtype == torch.float32
        weight_sums = grad_weight if in_place else torch.empty_like(grad_weight, dtype=torch.float32)
        if num_rows == 0 or num_features == 0:
            weight_sums.zero_()
    if grad_bias is not None:
        bias_sums = torch.zeros(num_classes, dtype=torch.float32, device=device)
    options = (ignore_index, "none", label_smoothing)
    for first in range(0, num_rows, chunk_rows):
        rows = slice(first, min(first + chunk_rows, num_rows))
        count = rows.stop - first
        x, targets = input[rows], target[rows].unsqueeze(1)
        z, grad_z = logits[:count].unsqueeze(2), grad_logits[:count]
        launch_linear_act(x, linear_weight.t(), linear_bias, "none", logits[:count], None)
        cross_entropy_forward(z, targets, weight, *options, row_loss[rows].unsqueeze(1), lse[:count], unused)
        scale = row_scale[rows].unsqueeze(1)
        saved = (z, targets, weight, lse[:count], unused)
        cross_entropy_backward(scale, *saved, *options, False, grad_z.unsqueeze(2), None)
        if grad_input is not None:
            launch_linear_act(grad_z, linear_weight, None, "none", grad_input[rows], None)
        if weight_sums is not None:
            launch_add_product(grad_z.t(), x, weight_sums, first > 0)
        if bias_sums is not None:
            bias_sums += grad_z.sum(0, dtype=torch.float32)
    if weight_sums is not None and weight_sums is not grad_weight:
        grad_weight.copy_(weight_sums)
    if grad_bias is not None:
        grad_bias.copy_(bias_sums)


def weight_of_rows(target, weight, ignore_index, num_classes):
    """[N], fp32; 0 where the target is ignored or no class."""
    legal = (target != ignore_index) & (target >= 0) & (target < num_classes)
    if weight is None:
        return legal.to(torch.float32)
    return weight.to(torch.float32)[target.where(legal, 0)].where(legal, 0)


def linear_cross_entropy_forward(
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    loss,
    grad_input,
    grad_linear_weight,
    grad_linear_bias,
):
    layer = (input, linear_weight, linear_bias, target, weight, ignore_index)
    with on_device_of(input):
        if not (needs_input_grad or needs_weight_grad or needs_bias_grad):
            launch_loss(*layer, reduction, label_smoothing, loss)
            return
        num_rows = input.shape[0]
        row_loss = loss if reduction == "none" else torch.empty(num_rows, dtype=torch.float32, device=input.device)
        row_scale = torch.ones(num_rows, dtype=torch.float32, device=input.device)
        total = None
        if reduction == "mean":
            total = weight_of_rows(target, weight, ignore_index, linear_weight.shape[0]).sum()
            row_scale = row_scale / total
        launch_chunks(
            row_scale,
            *layer,
            label_smoothing,
            row_loss,
            grad_input if needs_input_grad else None,
            grad_linear_weight if needs_weight_grad else None,
            grad_linear_bias if needs_bias_grad else None,
        )
        if reduction == "sum":
            loss.copy_(row_loss.sum())
        elif reduction == "mean":
            loss.copy_(row_loss.sum() / total)


def linear_cross_entropy_backward(
    grad_loss,
    input,
    linear_weight,
    linear_bias,
    target,
    weight,
    ignore_index,
    reduction,
    label_smoothing,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    grad_input,
    grad_linear_weight,
    grad_linear_bias,
):
    with on_device_of(input):
        num_rows = input.shape[0]
        row_scale = grad_loss.to(torch.float32)
        if reduction == "mean":
            row_scale = row_scale / weight_of_rows(target, weight, ignore_index, linear_weight.shape[0]).sum()
        launch_chunks(
            row_scale.expand(num_rows).contiguous(),
            input,
            linear_weight,
            linear_bias,
            target,
            weight,
            ignore_index,
            label_smoothing,
            torch.empty(num_rows, dtype=torch.float32, device=input.device),
            grad_input if needs_input_grad else None,
            grad_linear_weight if needs_weight_grad else None,
            grad_linear_bias if needs_bias_grad else None,
        )
