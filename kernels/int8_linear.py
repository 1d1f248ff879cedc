"""output = act(input @ (qweight * weight_scale).T + bias) on int8 matrix units; rows of input are quantized first."""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, arch_of, num_multiprocessors, on_device_of
from .linear_act import GROUP_M, matmul_tile_for, multiply_tile, store_epilogue, tile_of_program
from .quantize import quantize_forward

LARGEST_K = (2**31 - 1) // (127 * 128)  # where a sum of products of int8 may leave int32


@triton.jit
def int8_linear_kernel(
    qinput_ptr,
    input_scale_ptr,
    qweight_ptr,
    weight_scale_ptr,
    bias_ptr,
    output_ptr,
    pre_activation_ptr,
    M,
    N,
    K,
    qinput_row_stride,
    qinput_k_stride,
    qweight_row_stride,
    qweight_k_stride,
    weight_scale_stride,
    bias_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = multiply_tile(
        qinput_ptr,
        qweight_ptr,
        rows,
        cols,
        0,
        K,
        M,
        N,
        qinput_row_stride,
        qinput_k_stride,
        qweight_k_stride,
        qweight_row_stride,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        UPCAST=False,
        ACC_DTYPE=tl.int32,
    )  # [BLOCK_M, BLOCK_N]

    input_scale = tl.load(input_scale_ptr + rows, mask=rows < M, other=0)  # NaN for a row that was not finite
    weight_scale = tl.load(weight_scale_ptr + cols * weight_scale_stride, mask=cols < N, other=0)
    # The scales first: a row of huge values times its sum may overflow where the product does not.
    z = acc.to(tl.float32) * (input_scale[:, None] * weight_scale[None, :])
    store_epilogue(z, bias_ptr, bias_stride, output_ptr, pre_activation_ptr, rows < M, rows, cols, N, ACTIVATION)


def int8_linear_forward(input, qweight, weight_scale, bias, activation, save_pre_activation, output, pre_activation):
    (M, K), N = input.shape, qweight.shape[0]
    if K > LARGEST_K:
        raise ValueError(f"int8_linear: K must be at most {LARGEST_K} for sums to fit in int32, got {K}")
    if M == 0 or N == 0:
        return
    qinput = torch.empty(1, M, K, dtype=torch.int8, device=input.device)
    input_scale = torch.empty(M, dtype=torch.float32, device=input.device)
    quantize_forward(input[None], True, qinput, input_scale, None)
    num_programs = num_multiprocessors(input.device)
    tile = matmul_tile_for(M, N, qinput.element_size(), activation, arch_of(input.device), num_programs)
    with on_device_of(input):
        int8_linear_kernel[(triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n),)](
            qinput,
            input_scale,
            qweight,
            weight_scale,
            bias,
            output,
            pre_activation if save_pre_activation else None,
            M,
            N,
            K,
            *qinput.stride()[1:],
            *qweight.stride(),
            weight_scale.stride(0),
            0 if bias is None else bias.stride(0),
            ACTIVATION=activation,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            GROUP_M=GROUP_M,
            EVEN_K=K % tile.block_k == 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **COMPILE_OPTIONS,
        )
