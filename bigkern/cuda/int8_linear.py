"""output = act(input @ (qweight * weight_scale).T + bias) on int8 matrix units; rows of input are quantized first."""

from typing import NamedTuple

import torch

from . import gemm
from .gemm import cdiv
from .linear_act import ACTIVATIONS, PASS_THREADS, reads_whole_pieces
from .machine import build, machine_of

SHORT_ROW = 2048  # numbers that one warp goes through in 4 rounds
ROW_PIECE = 16  # numbers that a thread quantizes at a time (csrc/cuda/int8_linear_passes.cu)


def launch_quantize_rows(input, qinput, input_scale):
    """Fill qinput int8 [M, K], its rows 16-byte aligned, and input_scale [M]."""
    M, K = input.shape
    by_warp = K <= SHORT_ROW and M >= PASS_THREADS // 32
    machine_of(input).launch(
        build("int8_linear_passes", SCALAR=input.dtype),
        "quantize_short_rows_kernel" if by_warp else "quantize_long_rows_kernel",
        cdiv(M, PASS_THREADS // 32) if by_warp else M,
        PASS_THREADS,
        (input, qinput, input_scale, M, K, *input.stride(), qinput.stride(0), reads_whole_pieces(input, ROW_PIECE)),
    )


def qweight_operand(qweight, M):
    operand = gemm.operand_of(qweight)
    if not operand.has_vectors and gemm.is_worth_a_copy(M, *qweight.shape):
        return gemm.operand_of(gemm.aligned_copy(qweight))
    return operand


class Finish(NamedTuple):
    """What follows the sums."""

    input_scale: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor
    pre_activation: torch.Tensor | None
    activation: str

    def flags(self):
        return (
            self.weight_scale.stride(0),
            0 if self.bias is None else self.bias.stride(0),
            ACTIVATIONS.index(self.activation),
            gemm.has_whole_pieces(self.output, self.pre_activation),
        )


def launch_tiles(machine, rows, cols, finish):
    """One tile a block, on any chip."""
    (M, N), K = finish.output.shape, rows.tensor.shape[1]
    tile = gemm.matrix_tile_for(M, N, 1, machine)
    splits = gemm.splits_for(tile, M, N, K, machine)
    partials = gemm.new_partials(finish.output, splits, torch.int32)
    machine.launch(
        build("int8_linear", SCALAR=finish.output.dtype, **tile.macros),
        "int8_linear_kernel",
        (cdiv(M, tile.block_m) * cdiv(N, tile.block_n), splits.count),
        tile.threads,
        (
            rows.tensor,
            cols.tensor,
            *finish[:-1],
            partials,
            M,
            N,
            K,
            splits.k_each,
            *rows.arguments(),
            *cols.arguments(),
            *finish.flags(),
        ),
        tile.shared_bytes,
    )
    if partials is not None:
        launch_sum_splits(machine, partials, finish)


def launch_warpgroups(machine, rows, cols, finish):
    """Persistent blocks on Hopper."""
    (M, N), K = finish.output.shape, rows.tensor.shape[1]
    tile = gemm.warpgroup_tile_for(M, N, 1, machine)
    splits = gemm.splits_for(tile, M, N, K, machine)
    partials = gemm.new_partials(finish.output, splits, torch.int32)
    machine.launch(
        build("int8_linear_warpgroup", SCALAR=finish.output.dtype, **tile.macros),
        "int8_linear_warpgroup_kernel",
        gemm.warpgroup_blocks(tile, M, N, splits, machine),
        tile.threads,
        (
            gemm.tensor_map_of(machine, rows, tile.block_m),
            gemm.tensor_map_of(machine, cols, tile.block_n),
            *finish[:-1],
            partials,
            M,
            N,
            K,
            splits.k_each,
            splits.count,
            *finish.flags(),
        ),
        tile.shared_bytes,
    )
    if partials is not None:
        launch_sum_splits(machine, partials, finish)


def launch_sum_splits(machine, partials, finish):
    M, N = finish.output.shape
    flags = finish.flags()
    machine.launch(
        build("int8_linear_passes", SCALAR=finish.output.dtype),
        "sum_splits_kernel",
        gemm.sum_splits_blocks(M, N, PASS_THREADS, vectors=flags[-1]),
        PASS_THREADS,
        (partials, *finish[:-1], partials.shape[0], M, N, *flags),
    )


def int8_linear_forward(input, qweight, weight_scale, bias, activation, save_pre_activation, output, pre_activation):
    (M, K), N = input.shape, qweight.shape[0]
    if M == 0 or N == 0:
        return
    machine = machine_of(input)
    qinput = gemm.new_aligned(input, M, K, torch.int8)
    input_scale = input.new_empty(M, dtype=torch.float32)
    launch_quantize_rows(input, qinput, input_scale)
    rows, cols = gemm.operand_of(qinput), qweight_operand(qweight, M)
    pre_activation = pre_activation if save_pre_activation else None
    finish = Finish(input_scale, weight_scale, bias, output, pre_activation, activation)
    launch = launch_warpgroups if gemm.takes_warpgroups(machine, rows, cols) else launch_tiles
    launch(machine, rows, cols, finish)
