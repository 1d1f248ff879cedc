"""output = act(input @ weight.T + bias) and its gradients: one tiled product with the activation in its epilogue."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .common import (
    COMPILE_OPTIONS,
    INTERPRET,
    apply_activation,
    apply_activation_backward,
    arch_of,
    block_size_for_row,
    num_multiprocessors,
    num_warps_for,
    on_device_of,
    shared_memory_of,
)

GROUP_M = 8  # tile rows that run together: 8 x 8 tiles of 128 x 256 keep both operands' panels in L2
ROWS_PER_COLUMN_SUM = 128  # rows that one program of the activation's backward adds up; fixed, so sums are reproducible


class MatmulTile(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def matmul_tile_for(M, N, element_size, activation, arch, num_programs):
    """The tile of a product with an [M, N] result: the largest that still gives every multiprocessor work."""
    block_k = 128 // element_size  # 128 bytes: the widest row that shared memory swizzles
    if element_size == 4:  # fp32 takes no matrix unit: its tile is bounded by registers
        shapes = ((128, 64, 16, 8), (64, 64, 16, 4), (32, 32, 32, 4))
    elif M <= 16:  # bound by reading b: few rows, long reads, many programs
        shapes = ((16, 32, 4 * block_k, 4),)
    elif M <= 32:
        shapes = ((32, 64, 2 * block_k, 4),)
    else:  # from Hopper on, matrix units take 64 rows or more
        shapes = ((128, 128, block_k, 8), (64, 128, block_k, 4), (64, 64, block_k, 4))
        # Other activations, int8 and chips with less memory for stages leave the widest tile too few registers.
        if element_size == 2 and activation in ("none", "relu") and shared_memory_of(arch) >= 163 * 1024:
            shapes = ((128, 256, block_k, 8), *shapes)
    for shape in shapes:  # the last one where none fits
        block_m, block_n, block_k, num_warps = shape
        num_tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
        if num_tiles >= num_programs and block_m < 2 * M and block_n < 2 * N:
            break
    stage_bytes = (block_m + block_n) * block_k * element_size
    num_stages = min(max(shared_memory_of(arch) // stage_bytes, 1), 4)
    return MatmulTile(block_m, block_n, block_k, num_warps, num_stages)


def num_splits_for(num_tiles, K, block_k, num_programs):
    """Into how many parts to cut K when the result has fewer tiles than the chip has multiprocessors."""
    longest_useful = K // (8 * block_k)  # below 8 steps a part, filling the pipeline costs what the split gains
    return max(min(num_programs // max(num_tiles, 1), longest_useful, 16), 1)


@triton.jit
def tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(tile row, tile column) of this program: GROUP_M rows of tiles at a time, so that neighbours meet in L2."""
    program = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_in_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first_tile_m = program // tiles_in_group * GROUP_M
    rows_in_group = tl.minimum(tiles_m - first_tile_m, GROUP_M)
    place = program % tiles_in_group
    return first_tile_m + place % rows_in_group, place // rows_in_group


@triton.jit
def multiply_tile(
    a_ptr,
    b_ptr,
    rows,
    cols,
    first_k,
    last_k,
    M,
    N,
    a_row_stride,
    a_k_stride,
    b_k_stride,
    b_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):
    """a[rows, first_k:last_k] @ b[first_k:last_k, cols]; rows and cols are int64."""
    ks = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
    a_ptrs = a_ptr + rows[:, None] * a_row_stride + ks[None, :] * a_k_stride  # [BLOCK_M, BLOCK_K]
    b_ptrs = b_ptr + ks[:, None] * b_k_stride + cols[None, :] * b_col_stride  # [BLOCK_K, BLOCK_N]
    a_step = tl.full((), BLOCK_K, tl.int64) * a_k_stride
    b_step = tl.full((), BLOCK_K, tl.int64) * b_k_stride
    row_mask = (rows < M)[:, None]
    col_mask = (cols < N)[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC_DTYPE)
    for k in range(first_k, last_k, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptrs, mask=row_mask, other=0)
            b = tl.load(b_ptrs, mask=col_mask, other=0)
        else:
            k_mask = tl.arange(0, BLOCK_K) < last_k - k
            a = tl.load(a_ptrs, mask=row_mask & k_mask[None, :], other=0)
            b = tl.load(b_ptrs, mask=col_mask & k_mask[:, None], other=0)
        if UPCAST:  # triton's interpreter multiplies the bit patterns of bf16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC_DTYPE)
        a_ptrs += a_step
        b_ptrs += b_step
    return acc


@triton.jit
def store_epilogue(
    z,
    bias_ptr,
    bias_stride,
    output_ptr,
    pre_activation_ptr,
    row_mask,
    rows,
    cols,
    N,
    ACTIVATION: tl.constexpr,
):
    """Add the bias to fp32 z [rows, cols], store it where it is asked for, and store its activation."""
    if bias_ptr is not None:
        z += tl.load(bias_ptr + cols * bias_stride, mask=cols < N, other=0).to(tl.float32)[None, :]
    offsets = rows[:, None] * N + cols[None, :]
    mask = row_mask[:, None] & (cols < N)[None, :]
    if pre_activation_ptr is not None:
        tl.store(pre_activation_ptr + offsets, z, mask=mask)
    tl.store(output_ptr + offsets, apply_activation(z, ACTIVATION), mask=mask)


@triton.jit
def linear_act_kernel(
    a_ptr,
    b_ptr,
    bias_ptr,
    output_ptr,
    pre_activation_ptr,
    M,
    N,
    K,
    k_per_split,
    a_row_stride,
    a_k_stride,
    b_k_stride,
    b_col_stride,
    bias_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """output[M, N] = act(a[M, K] @ b[K, N] + bias[N]); program (i, s) adds up part s of K into output[s]."""
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    split = tl.program_id(1)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_k = split * k_per_split
    last_k = tl.minimum(first_k + k_per_split, K)
    z = multiply_tile(
        a_ptr,
        b_ptr,
        rows,
        cols,
        first_k,
        last_k,
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

    split_rows = split.to(tl.int64) * M + rows
    store_epilogue(z, bias_ptr, bias_stride, output_ptr, pre_activation_ptr, rows < M, split_rows, cols, N, ACTIVATION)


@triton.jit
def activation_backward_kernel(
    grad_output_ptr,
    saved_ptr,
    grad_z_ptr,
    column_sums_ptr,
    M,
    N,
    grad_output_row_stride,
    grad_output_col_stride,
    saved_row_stride,
    saved_col_stride,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grad_z = grad_output * act'(saved) for ROWS rows, and the sums of its columns over these rows."""
    col_blocks = tl.cdiv(N, BLOCK_N)
    row_block = (tl.program_id(0) // col_blocks).to(tl.int64)
    cols = (tl.program_id(0) % col_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first_row in range(0, ROWS, BLOCK_M):
        rows = row_block * ROWS + first_row + tl.arange(0, BLOCK_M)
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        grad_output_offsets = rows[:, None] * grad_output_row_stride + cols[None, :] * grad_output_col_stride
        grad_z = tl.load(grad_output_ptr + grad_output_offsets, mask=mask, other=0).to(tl.float32)
        if ACTIVATION != "none":
            saved_offsets = rows[:, None] * saved_row_stride + cols[None, :] * saved_col_stride
            saved = tl.load(saved_ptr + saved_offsets, mask=mask, other=0).to(tl.float32)
            grad_z = apply_activation_backward(grad_z, saved, ACTIVATION)
            tl.store(grad_z_ptr + rows[:, None] * N + cols[None, :], grad_z, mask=mask)
        sums += grad_z
    if column_sums_ptr is not None:
        tl.store(column_sums_ptr + row_block * N + cols, tl.sum(sums, axis=0), mask=cols < N)


def launch_linear_act(a, b, bias, activation, output, pre_activation):
    """Fill output [M, N] with act(a [M, K] @ b [K, N] + bias [N]); `bias` and `pre_activation` may be None."""
    (M, K), N = a.shape, b.shape[1]
    if M == 0 or N == 0:
        return
    num_programs = num_multiprocessors(a.device)
    tile = matmul_tile_for(M, N, a.element_size(), activation, arch_of(a.device), num_programs)
    num_tiles = triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n)
    num_splits = 1
    if activation == "none" and bias is None and pre_activation is None:  # what follows cannot work on parts
        num_splits = num_splits_for(num_tiles, K, tile.block_k, num_programs)
    k_per_split = triton.cdiv(triton.cdiv(K, num_splits), tile.block_k) * tile.block_k
    result = output if num_splits == 1 else torch.empty(num_splits, M, N, dtype=torch.float32, device=a.device)
    linear_act_kernel[(num_tiles, num_splits)](
        a,
        b,
        bias,
        result,
        pre_activation,
        M,
        N,
        K,
        k_per_split,
        *a.stride(),
        *b.stride(),
        0 if bias is None else bias.stride(0),
        ACTIVATION=activation,
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
    if num_splits > 1:
        output.copy_(result.sum(dim=0))  # one order of summation, unlike atomics


def launch_activation_backward(grad_output, saved, activation, grad_z, grad_bias):
    """Fill grad_z [M, N] (unless activation is "none") and grad_bias [N] (unless it is None)."""
    M, N = grad_output.shape
    block_n = block_size_for_row(N, 256)
    block_m = max(min(4096 // block_n, ROWS_PER_COLUMN_SUM), 1)
    row_blocks = triton.cdiv(M, ROWS_PER_COLUMN_SUM)
    column_sums = None
    if grad_bias is not None:
        column_sums = torch.empty(row_blocks, N, dtype=torch.float32, device=grad_output.device)
    if M > 0 and N > 0:
        activation_backward_kernel[(row_blocks * triton.cdiv(N, block_n),)](
            grad_output,
            saved,
            grad_z,
            column_sums,
            M,
            N,
            *grad_output.stride(),
            *saved.stride(),
            ACTIVATION=activation,
            ROWS=ROWS_PER_COLUMN_SUM,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=num_warps_for(block_m * block_n),
            **COMPILE_OPTIONS,
        )
    if grad_bias is not None:
        grad_bias.copy_(column_sums.sum(dim=0))


def linear_act_forward(input, weight, bias, activation, save_pre_activation, output, pre_activation):
    with on_device_of(input):
        launch_linear_act(input, weight.t(), bias, activation, output, pre_activation if save_pre_activation else None)


def linear_act_backward(
    grad_output,
    input,
    weight,
    saved,
    activation,
    needs_input_grad,
    needs_weight_grad,
    needs_bias_grad,
    grad_input,
    grad_weight,
    grad_bias,
):
    with on_device_of(input):
        grad_z = grad_output
        if activation != "none":
            # Written out rather than recomputed in each product: act' would be taken once per tile column, on operands
            # that could no longer be copied straight into shared memory; this pass also gives grad_bias for free.
            grad_z = torch.empty(grad_output.shape, dtype=grad_output.dtype, device=grad_output.device)
        if activation != "none" or needs_bias_grad:
            saved = grad_output if activation == "none" else saved
            launch_activation_backward(grad_output, saved, activation, grad_z, grad_bias if needs_bias_grad else None)
        if needs_input_grad:
            launch_linear_act(grad_z, weight, None, "none", grad_input, None)
        if needs_weight_grad:
            launch_linear_act(grad_z.t(), input, None, "none", grad_weight, None)
