"""output = act(input @ weight.T + bias) with int8 or int4 weights that become floating in registers."""

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, INTERPRET, num_multiprocessors, on_device_of
from .linear_act import GROUP_M, store_epilogue, tile_of_program


def tile_for(M, N, group_bytes, int4, num_programs):
    """(BLOCK_M, BLOCK_N, BLOCK_BYTES, warps): small tiles, because each has two sums and its weights in registers."""
    # A step must not reach far beyond a group; tl.dot asks for a depth of 16 at least.
    widest = max(triton.next_power_of_2(max(group_bytes, 1)), 16)
    if M <= 16:  # bound by reading the weights: few rows, long reads, many programs
        return 16, 32, min(widest, 64), 4
    if M <= 32 or triton.cdiv(M, 64) * triton.cdiv(N, 64) < num_programs:
        return 32, 64, min(widest, 32), 4
    return 64, 64, 16 if int4 else min(widest, 32), 4


@triton.jit
def weight_only_linear_kernel(
    input_ptr,
    qweight_ptr,
    scale_ptr,
    zero_point_ptr,
    bias_ptr,
    output_ptr,
    M,
    N,
    group_size,
    num_groups,
    input_row_stride,
    input_k_stride,
    qweight_row_stride,
    bias_stride,
    ACTIVATION: tl.constexpr,
    INT4: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    GROUP_M: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Group after group of the depth: whole numbers are multiplied, and their sum scaled once."""
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = (rows < M)[:, None]
    col_mask = cols < N
    group_bytes = (group_size + 1) // 2 if INT4 else group_size

    z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(0, num_groups):
        zero = tl.full((BLOCK_N,), 8 if INT4 else 0, tl.int32)
        if zero_point_ptr is not None:
            zero = tl.load(zero_point_ptr + cols * num_groups + group, mask=col_mask, other=0)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, group_bytes, BLOCK_BYTES):
            places = first + tl.arange(0, BLOCK_BYTES).to(tl.int64)
            q_ptrs = qweight_ptr + cols[:, None] * qweight_row_stride + (group * group_bytes + places)[None, :]
            q = tl.load(q_ptrs, mask=col_mask[:, None] & (places < group_bytes)[None, :], other=0).to(tl.int32)
            ks = places
            if INT4:
                q = tl.interleave(q & 15, q >> 4)  # [BLOCK_N, 2 * BLOCK_BYTES]
                ks = 2 * first + tl.arange(0, 2 * BLOCK_BYTES).to(tl.int64)
            a_ptrs = input_ptr + rows[:, None] * input_row_stride + (group * group_size + ks)[None, :] * input_k_stride
            a = tl.load(a_ptrs, mask=row_mask & (ks < group_size)[None, :], other=0)
            if UPCAST:  # triton's interpreter multiplies the bit patterns of bf16
                a = a.to(tl.float32)
            b = (q - zero[:, None]).to(a.dtype)  # whole numbers of at most 255 are exact in every dtype
            acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee", out_dtype=tl.float32)
        z += acc * tl.load(scale_ptr + cols * num_groups + group, mask=col_mask, other=0)[None, :]
    store_epilogue(z, bias_ptr, bias_stride, output_ptr, None, rows < M, rows, cols, N, ACTIVATION)


def weight_only_linear_forward(input, qweight, weight_scale, weight_zero_point, bias, activation, output):
    M, K = input.shape
    N, num_groups = weight_scale.shape
    if M == 0 or N == 0:
        return
    int4 = str(qweight.dtype) == "torch.uint8"
    group_size = K // num_groups
    group_bytes = triton.cdiv(group_size, 2) if int4 else group_size
    block_m, block_n, block_bytes, num_warps = tile_for(M, N, group_bytes, int4, num_multiprocessors(input.device))
    with on_device_of(input):
        weight_only_linear_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
            input,
            qweight,
            weight_scale,
            weight_zero_point,
            bias,
            output,
            M,
            N,
            group_size,
            num_groups,
            *input.stride(),
            qweight.stride(0),
            0 if bias is None else bias.stride(0),
            ACTIVATION=activation,
            INT4=int4,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_BYTES=block_bytes,
            GROUP_M=GROUP_M,
            UPCAST=INTERPRET,
            num_warps=num_warps,
            num_stages=4,
            **COMPILE_OPTIONS,
        )
