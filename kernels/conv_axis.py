"""Which pixels meet which: one convolution, forward or as a gradient, along one dimension of an image.

A gradient with a stride of s falls into s convolutions of stride 1, one for each remainder of the input's place by s:
no tap belongs to two of them, so nothing is multiplied by the zeros that a stride leaves between pixels.
"""

import math
from typing import NamedTuple


class Axis(NamedTuple):
    """Position p and tap t meet the source at p * step + offset + t * tap_offset; zero where that is outside.

    Tap t is number first_tap + t * tap_by of the kernel, position p stands at first + p * spread of the result.
    """

    positions: int
    source_size: int
    taps: int
    first_tap: int
    tap_by: int
    step: int
    offset: int
    tap_offset: int
    first: int
    spread: int


def forward_axis(source_size, result_size, kernel, stride, padding, dilation):
    return Axis(result_size, source_size, kernel, 0, 1, stride, -padding, dilation, 0, 1)


def gradient_axes(source_size, result_size, kernel, stride, padding, dilation):
    """One for each remainder that the places of the gradient leave by the stride; the source is grad_output."""
    tap_by = stride // math.gcd(stride, dilation)
    for remainder in range(min(stride, result_size)):
        positions = (result_size - remainder + stride - 1) // stride
        # Tap t comes from grad_output's place (place + padding - t * dilation) / stride, where that is whole.
        whole = [t for t in range(min(tap_by, kernel)) if (remainder + padding - t * dilation) % stride == 0]
        first_tap = whole[0] if whole else 0
        taps = (kernel - 1 - first_tap) // tap_by + 1 if whole else 0
        offset = (remainder + padding - first_tap * dilation) // stride
        tap_offset = -(tap_by * dilation // stride)
        yield Axis(positions, source_size, taps, first_tap, tap_by, 1, offset, tap_offset, remainder, stride)
