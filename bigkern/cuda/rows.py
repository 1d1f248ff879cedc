"""What launchers of memory-bound kernels share: teams of threads for rows, and which addresses take 16-byte accesses.

The kernels' side is csrc/cuda/rows.cuh.
"""

from typing import NamedTuple

ACCESS_BYTES = 16
WARP = 32
LARGEST_WARP_ROW = 256  # accesses; a warp of a row this long makes 8 of them a thread
THREADS = 256  # of a block that holds several teams
IN_FLIGHT = 4  # csrc/cuda/rows.cuh: kInFlight
STATIC_SHARED_BYTES = 1024  # what kernels of rows use beside their slots, at most


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two_from(n: int) -> int:
    """The smallest power of two that is at least n (and at least 1)."""
    return 1 << max(n - 1, 0).bit_length()


def power_of_two_to(n: int) -> int:
    """The largest power of two that is at most n (and at least 1)."""
    return 1 << max(n.bit_length() - 1, 0)


class Team(NamedTuple):
    """`size` threads share a row; a block of `block` threads holds block / size teams."""

    size: int
    block: int

    @property
    def rows(self) -> int:
        return self.block // self.size


def team_for(num_rows: int, num_accesses: int, largest: int) -> Team:
    """Up to `largest` threads for each row of this many accesses: about two each in a warp, so that neighbours share
    memory sectors, and up to eight each in a block."""
    if num_accesses <= LARGEST_WARP_ROW:
        size = min(power_of_two_from(ceil_div(num_accesses, 2)), WARP)
        return Team(size, block_for(num_rows * size))
    threads = min(max(power_of_two_from(ceil_div(num_accesses, 8)), 128), largest)
    return Team(threads, threads)


def block_for(num_threads: int, largest: int = THREADS) -> int:
    """A block for this many threads; several blocks where they are more than `largest`."""
    return min(max(power_of_two_from(num_threads), WARP), largest)


def accesses(num_elements: int, element_size: int, wide: bool) -> int:
    return ceil_div(num_elements, ACCESS_BYTES // element_size) if wide else num_elements


def slot_bytes_for(num_elements: int, element_size: int) -> int:
    """Shared memory for a row at any offset from a 16-byte boundary."""
    return ceil_div(num_elements * element_size, ACCESS_BYTES) * ACCESS_BYTES + ACCESS_BYTES


def misplacement(tensor, width: int) -> int:
    """How many elements past an address that is a multiple of `width` elements a tensor begins."""
    return tensor.data_ptr() // tensor.element_size() % width


def meet(width: int, *placed) -> bool:
    """Whether one cut of rows suits all tensors: (tensor, its strides between rows), elements of a row side by side.

    True where rows begin as many elements past a multiple of `width` elements in each of them.
    """
    (first, first_strides), *others = placed
    return all(
        misplacement(tensor, width) == misplacement(first, width)
        and all(
            (stride - first_stride) % width == 0 for stride, first_stride in zip(strides, first_strides, strict=True)
        )
        for tensor, strides in others
    )


def aligned(width: int, *placed) -> bool:
    """Whether all rows of (tensor, its strides between rows) begin at a multiple of `width` elements."""
    return all(
        misplacement(tensor, width) == 0 and all(stride % width == 0 for stride in strides)
        for tensor, strides in placed
    )
