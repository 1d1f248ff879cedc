"""What the launchers of matrix products share: how operands lie in memory, tiles and splits by shape, dtype and chip.

A product is a [M, K] @ b [K, N]. Kernels see each operand as rows (M or N) by k, contiguous along k ("K-major") or
along the rows ("MN-major"), and copy 16 bytes at a time where every line starts at a multiple of 16 bytes.
"""

from typing import NamedTuple

import torch

from .machine import Machine

LINE_BYTES = 128  # of k that one step of a matrix-unit tile takes (csrc/cuda/gemm_tile.cuh)
PIECE = 8  # columns that a thread finishes at a time (csrc/cuda/gemm_epilogue.cuh)
STAGE_PADDING = 8
VECTORS, MN_MAJOR = 1, 2  # csrc/cuda/gemm_operand.cuh
THIN_M = 16  # rows up to which a product is bound by reading b


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


class Operand(NamedTuple):
    """One side of a product: `tensor` [rows, k] with the flags that its kernel gets."""

    tensor: torch.Tensor
    layout: int

    @property
    def is_mn_major(self) -> bool:
        return bool(self.layout & MN_MAJOR)

    @property
    def has_vectors(self) -> bool:
        return bool(self.layout & VECTORS)

    def arguments(self):
        return (*self.tensor.stride(), self.layout)


def is_aligned(tensor: torch.Tensor, inner: int) -> bool:
    """Every line of a matrix along dimension `inner` is contiguous and starts at a multiple of 16 bytes."""
    outer = 1 - inner
    if tensor.shape[inner] > 1 and tensor.stride(inner) != 1:
        return False
    starts_aligned = tensor.shape[outer] <= 1 or tensor.stride(outer) * tensor.element_size() % 16 == 0
    return starts_aligned and tensor.data_ptr() % 16 == 0


def operand_of(tensor: torch.Tensor) -> Operand:
    """How the kernel reads `tensor` [rows, k]."""
    if is_aligned(tensor, inner=1):
        return Operand(tensor, VECTORS)
    if tensor.element_size() > 1 and is_aligned(tensor, inner=0):  # ldmatrix cannot transpose bytes
        return Operand(tensor, VECTORS | MN_MAJOR)
    # One number at a time. Multiply-adds take them in either order, the matrix units' tile as K-major.
    along_rows = tensor.dtype == torch.float32 and tensor.stride(0) == 1
    return Operand(tensor, MN_MAJOR if along_rows else 0)


def aligned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a matrix whose lines start at multiples of 16 bytes; along the same dimension where it can be."""
    if tensor.element_size() > 1 and tensor.stride(0) < tensor.stride(1):
        return aligned_copy(tensor.t()).t()
    padded = new_aligned(tensor, *tensor.shape)
    padded.copy_(tensor)
    return padded


def new_aligned(like: torch.Tensor, rows: int, cols: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty matrix with room for whole pieces of 16 bytes or more in each row."""
    dtype = dtype or like.dtype
    unit = max(16 // dtype.itemsize, PIECE)
    return like.new_empty(rows, cdiv(cols, unit) * unit, dtype=dtype)[:, :cols]


def is_worth_a_copy(M: int, N: int, K: int) -> bool:
    """Whether aligning operands beats reading them in single numbers.

    Each is read once per tile of the other side: from two tiles on a pass over it costs less, where the product is not
    so small that the copy's launch decides.
    """
    return min(M, N) >= 128 and M * N * K >= 2**25


def has_whole_pieces(*outputs) -> bool:
    """Rows of these contiguous outputs [M, N] can be written 16 bytes at a time."""
    given = [output for output in outputs if output is not None]
    return all(output.shape[1] % PIECE == 0 and output.data_ptr() % 16 == 0 for output in given)


class Tile(NamedTuple):
    """What one block computes of a product, and the macros that say so."""

    block_m: int
    block_n: int
    block_k: int
    threads: int
    shared_bytes: int
    macros: dict[str, int]


# block_m, block_n, warps_m, warps_n, warps_k, and the share of the matrix units' rate that such a tile's loads allow.
MATRIX_SHAPES = ((128, 256, 2, 4, 1, 1.0), (128, 128, 2, 4, 1, 0.9), (64, 64, 2, 2, 1, 0.6))
THIN_SHAPE = (16, 32, 1, 1, 4, 1.0)
THIN_MN_SHAPE = (16, 64, 1, 2, 2, 1.0)  # lines of an MN-major b hold 64 columns
# block_m, block_n, block_k, thread_m, thread_n, and the share of the fp32 pipe's rate.
FMA_SHAPES = ((128, 128, 16, 8, 8, 1.0), (64, 64, 16, 4, 4, 0.7))
THIN_FMA_SHAPE = (16, 64, 32, 2, 4, 1.0)


def cheapest(shapes, M, N, num_multiprocessors):
    """The shape that ends first: its waves over the chip, times its area, over the share of the rate it reaches."""

    def cost(shape):
        block_m, block_n, *_, share = shape
        waves = cdiv(cdiv(M, block_m) * cdiv(N, block_n), num_multiprocessors)
        return waves * block_m * block_n / share

    return min(shapes, key=cost)


def matrix_tile_for(
    M: int, N: int, element_size: int, machine: Machine, a_is_mn_major: bool = False, b_is_mn_major: bool = False
) -> Tile:
    """The tile of a product on matrix units (csrc/cuda/gemm_tile.cuh).

    128 x 256 loads least for its work, but its three stages (144 KiB) need a large shared memory, and its tiles must
    fill the chip; smaller ones fill it with less. Few rows take tiles of 16 x 32, whose warps share out k: three stages
    of 24 KiB hide the latency of memory at one block a multiprocessor (25 bytes a ns, 1000 ns), and 4096 columns are
    128 blocks, with no splits to add up. It has no MN-major a: lines of that hold 64 rows.
    """
    if M <= THIN_M and not a_is_mn_major:
        return matrix_tile(THIN_MN_SHAPE if b_is_mn_major else THIN_SHAPE, element_size, machine)
    fits = [shape for shape in MATRIX_SHAPES if fits_in(matrix_tile(shape, element_size, machine), machine)]
    return matrix_tile(cheapest(fits, M, N, machine.num_multiprocessors), element_size, machine)


def matrix_tile(shape, element_size: int, machine: Machine) -> Tile:
    block_m, block_n, warps_m, warps_n, warps_k, _ = shape
    stage_bytes = (block_m + block_n) * LINE_BYTES * warps_k
    stages = max(min(machine.shared_memory // stage_bytes, 4 if block_m == 64 else 3), 2)
    names = ("BLOCK_M", "BLOCK_N", "WARPS_M", "WARPS_N", "WARPS_K", "STAGES")
    macros = dict(zip(names, (*shape[:-1], stages), strict=True))
    shared_bytes = max(stages * stage_bytes, warps_k * staged_bytes(block_m, block_n))
    block_k = warps_k * LINE_BYTES // element_size
    return Tile(block_m, block_n, block_k, 32 * warps_m * warps_n * warps_k, shared_bytes, macros)


def fits_in(tile: Tile, machine: Machine) -> bool:
    return tile.shared_bytes <= machine.shared_memory and tile.macros["STAGES"] >= 3


def fma_tile_for(M: int, N: int, machine: Machine) -> Tile:
    """The tile of an fp32 product in multiply-adds (csrc/cuda/fma_tile.cuh)."""
    thin = M <= THIN_M
    shape = THIN_FMA_SHAPE if thin else cheapest(FMA_SHAPES, M, N, machine.num_multiprocessors)
    block_m, block_n, block_k, thread_m, thread_n, _ = shape
    buffers_bytes = 2 * 4 * block_k * (block_m + 4 + block_n + 4)
    macros = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "THREAD_M": thread_m, "THREAD_N": thread_n}
    threads = block_m // thread_m * (block_n // thread_n)
    return Tile(block_m, block_n, block_k, threads, max(buffers_bytes, staged_bytes(block_m, block_n)), macros)


def staged_bytes(block_m: int, block_n: int) -> int:
    """The tile's sums in shared memory, for its epilogue."""
    return 4 * block_m * (block_n + STAGE_PADDING)


class Splits(NamedTuple):
    count: int
    k_each: int


def splits_for(tile: Tile, M: int, N: int, K: int, machine: Machine) -> Splits:
    """Into how many parts to cut K where the result has fewer tiles than the chip has multiprocessors.

    A part keeps 16 steps, 8 of a thin tile, whose steps are longer: about as much time as the launch that adds up.
    """
    num_tiles = cdiv(M, tile.block_m) * cdiv(N, tile.block_n)
    longest_useful = K // ((8 if tile.block_m <= THIN_M else 16) * tile.block_k)
    count = max(min(machine.num_multiprocessors // num_tiles, longest_useful), 1)
    k_each = max(cdiv(cdiv(K, count), tile.block_k), 1) * tile.block_k
    return Splits(max(cdiv(K, k_each), 1), k_each)


def new_partials(output: torch.Tensor, splits: Splits, dtype: torch.dtype) -> torch.Tensor | None:
    """Room for the sums of each split, [splits, M, N rounded up to whole pieces]; None where there is one."""
    M, N = output.shape
    return output.new_empty(splits.count, M, cdiv(N, PIECE) * PIECE, dtype=dtype) if splits.count > 1 else None


def sum_splits_blocks(M: int, N: int, threads: int, vectors: bool) -> int:
    """Blocks of a kernel whose threads finish one piece each, or one column where there are no vectors."""
    return cdiv(M * (cdiv(N, PIECE) if vectors else N), threads)


# ---- Hopper's warpgroups (csrc/cuda/warpgroup_tile.cuh) ----

WARPGROUP_M = 128
WARPGROUP_WIDTHS = (256, 128, 64)
WARPGROUP_THREADS = 384
STATIC_BYTES = 1024  # the barriers, as they are aligned before the dynamic shared memory
ROUND_BYTES = 4 * WARPGROUP_M * 32 * 2  # the consumers' sums in two buffers of 32 columns


def takes_warpgroups(machine: Machine, rows: Operand, cols: Operand) -> bool:
    """Whether a product runs by wgmma and TMA: large enough for a tile, and both operands as TMA reads them."""
    (M, K), N = rows.tensor.shape, cols.tensor.shape[0]
    if not machine.has_warpgroups or rows.tensor.dtype == torch.float32 or M <= 64 or min(N, K) < 64:
        return False
    return all(operand.has_vectors and min(operand.tensor.stride()) > 0 for operand in (rows, cols))


def warpgroup_tile_for(M: int, N: int, element_size: int, machine: Machine) -> Tile:
    """The widest tile loads least for its work; a narrower one where the widest leave part of the chip idle.

    A step of a tile takes the time of its products or of its loads, both about in proportion to block_n + 64.
    """

    def cost(block_n):
        waves = cdiv(cdiv(M, WARPGROUP_M) * cdiv(N, block_n), machine.num_multiprocessors)
        return waves * (block_n + 64)

    block_n = min(WARPGROUP_WIDTHS, key=cost)
    stage_bytes = (WARPGROUP_M + block_n) * LINE_BYTES
    stages = min((machine.shared_memory - STATIC_BYTES - ROUND_BYTES) // stage_bytes, 6)
    macros = {"BLOCK_N": block_n, "STAGES": stages}
    shared_bytes = stages * stage_bytes + ROUND_BYTES
    return Tile(WARPGROUP_M, block_n, LINE_BYTES // element_size, WARPGROUP_THREADS, shared_bytes, macros)


def warpgroup_blocks(tile: Tile, M: int, N: int, splits: Splits, machine: Machine) -> int:
    """Persistent: no more blocks than run at once."""
    return min(cdiv(M, tile.block_m) * cdiv(N, tile.block_n) * splits.count, machine.num_multiprocessors)


def tensor_map_of(machine: Machine, operand: Operand, tile_rows: int):
    """`operand` for TMA: a step of tile_rows lines of k, or blocks of 64 rows at each k."""
    if operand.is_mn_major:
        return machine.tensor_map(operand.tensor.t(), (64, 64), LINE_BYTES)
    return machine.tensor_map(operand.tensor, (tile_rows, LINE_BYTES // operand.tensor.element_size()), LINE_BYTES)
