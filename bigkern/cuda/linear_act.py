"""output = act(input @ weight.T + bias) and its gradients; what csrc/cuda/linear_act.cu is launched with."""

import torch

from . import gemm
from .gemm import cdiv
from .machine import build, machine_of

# As csrc/cuda/activation.cuh numbers them.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
PASS_THREADS = 256  # csrc/cuda/linear_act_passes.cu
PASS_ROWS = 128
PASS_COLUMNS = 256


def launch_product(a, b, bias, activation, output, pre_activation):
    """Fill output [M, N] with act(a [M, K] @ b [K, N] + bias [N]); `bias` and `pre_activation` may be None."""
    (M, K), N = a.shape, b.shape[1]
    if M == 0 or N == 0:
        return
    machine = machine_of(output)
    rows, cols = (product_operand(tensor, M, N, K) for tensor in (a, b.t()))
    launch = launch_warpgroups if gemm.takes_warpgroups(machine, rows, cols) else launch_tiles
    launch(machine, rows, cols, bias, activation, output, pre_activation)


def product_operand(tensor, M, N, K):
    operand = gemm.operand_of(tensor)
    if not operand.has_vectors and tensor.dtype != torch.float32 and gemm.is_worth_a_copy(M, N, K):
        return gemm.operand_of(gemm.aligned_copy(tensor))
    return operand


def launch_tiles(machine, rows, cols, bias, activation, output, pre_activation):
    """One tile a block, on any chip."""
    (M, N), K = output.shape, rows.tensor.shape[1]
    if output.dtype == torch.float32:
        tile = gemm.fma_tile_for(M, N, machine)
        majors = {}
    else:
        tile = gemm.matrix_tile_for(M, N, output.element_size(), machine, rows.is_mn_major, cols.is_mn_major)
        majors = {"A_MN_MAJOR": rows.is_mn_major, "B_MN_MAJOR": cols.is_mn_major}
    splits = gemm.splits_for(tile, M, N, K, machine)
    partials = gemm.new_partials(output, splits, torch.float32)
    bias_stride = 0 if bias is None else bias.stride(0)
    vectors = gemm.has_whole_pieces(output, pre_activation)
    machine.launch(
        build("linear_act", SCALAR=output.dtype, **tile.macros, **majors),
        "linear_act_kernel",
        (cdiv(M, tile.block_m) * cdiv(N, tile.block_n), splits.count),
        tile.threads,
        (
            rows.tensor,
            cols.tensor,
            bias,
            output,
            pre_activation,
            partials,
            M,
            N,
            K,
            splits.k_each,
            *rows.arguments(),
            *cols.arguments(),
            bias_stride,
            ACTIVATIONS.index(activation),
            vectors,
        ),
        tile.shared_bytes,
    )
    if partials is not None:
        launch_sum_splits(machine, partials, bias, activation, output, pre_activation)


def launch_warpgroups(machine, rows, cols, bias, activation, output, pre_activation):
    """Persistent blocks on Hopper."""
    (M, N), K = output.shape, rows.tensor.shape[1]
    tile = gemm.warpgroup_tile_for(M, N, output.element_size(), machine)
    splits = gemm.splits_for(tile, M, N, K, machine)
    partials = gemm.new_partials(output, splits, torch.float32)
    macros = {**tile.macros, "A_MN_MAJOR": rows.is_mn_major, "B_MN_MAJOR": cols.is_mn_major}
    machine.launch(
        build("linear_act_warpgroup", SCALAR=output.dtype, **macros),
        "linear_act_warpgroup_kernel",
        gemm.warpgroup_blocks(tile, M, N, splits, machine),
        tile.threads,
        (
            gemm.tensor_map_of(machine, rows, tile.block_m),
            gemm.tensor_map_of(machine, cols, tile.block_n),
            bias,
            output,
            pre_activation,
            partials,
            M,
            N,
            K,
            splits.k_each,
            splits.count,
            0 if bias is None else bias.stride(0),
            ACTIVATIONS.index(activation),
            gemm.has_whole_pieces(output, pre_activation),
        ),
        tile.shared_bytes,
    )
    if partials is not None:
        launch_sum_splits(machine, partials, bias, activation, output, pre_activation)


def launch_sum_splits(machine, partials, bias, activation, output, pre_activation):
    M, N = output.shape
    vectors = gemm.has_whole_pieces(output, pre_activation)
    machine.launch(
        build("linear_act_passes", SCALAR=output.dtype),
        "sum_splits_kernel",
        gemm.sum_splits_blocks(M, N, PASS_THREADS, vectors),
        PASS_THREADS,
        (
            partials,
            bias,
            output,
            pre_activation,
            partials.shape[0],
            M,
            N,
            0 if bias is None else bias.stride(0),
            ACTIVATIONS.index(activation),
            vectors,
        ),
    )


def launch_activation_backward(grad_output, saved, activation, grad_z, grad_bias):
    """Fill grad_z [M, N], a `new_aligned`, and grad_bias [N]; either may be None, grad_z without an activation."""
    M, N = grad_output.shape
    if N == 0:
        return
    machine, passes = machine_of(grad_output), build("linear_act_passes", SCALAR=grad_output.dtype)
    row_blocks = cdiv(M, PASS_ROWS)
    column_sums = None if grad_bias is None else grad_output.new_empty(row_blocks, N, dtype=torch.float32)
    if M > 0:
        machine.launch(
            passes,
            "activation_backward_kernel",
            row_blocks * cdiv(N, PASS_COLUMNS),
            PASS_THREADS,
            (
                grad_output,
                saved,
                grad_z,
                column_sums,
                M,
                N,
                *grad_output.stride(),
                *((0, 0) if saved is None else saved.stride()),
                0 if grad_z is None else grad_z.stride(0),
                ACTIVATIONS.index(activation),
                reads_whole_pieces(grad_output),
                saved is not None and reads_whole_pieces(saved),
            ),
        )
    if grad_bias is not None:
        machine.launch(passes, "sum_columns_kernel", cdiv(N, 32), PASS_THREADS, (column_sums, grad_bias, row_blocks, N))


def reads_whole_pieces(tensor, piece=gemm.PIECE):
    return tensor.shape[1] % piece == 0 and gemm.is_aligned(tensor, inner=1)


def linear_act_forward(input, weight, bias, activation, save_pre_activation, output, pre_activation):
    launch_product(input, weight.t(), bias, activation, output, pre_activation if save_pre_activation else None)


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
    grad_z = grad_output
    if activation != "none":
        # Written out rather than recomputed in each product: act' would be taken once per tile column, on operands that
        # could no longer be copied straight into shared memory; this pass also gives grad_bias for free.
        grad_z = gemm.new_aligned(grad_output, *grad_output.shape)
    if activation != "none" or needs_bias_grad:
        with_activation = (saved, activation, grad_z) if activation != "none" else (None, activation, None)
        launch_activation_backward(grad_output, *with_activation, grad_bias if needs_bias_grad else None)
    if needs_input_grad:
        launch_product(grad_z, weight, None, "none", grad_input, None)
    if needs_weight_grad:
        launch_product(grad_z.t(), input, None, "none", grad_weight, None)
