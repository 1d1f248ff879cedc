"""Which pixels meet which: one convolution, forward or as a gradient, along one dimension of an image.

A gradient with a stride of s falls into s convolutions of stride 1, one for each remainder of the input's place by s:
no tap belongs to two of them, so nothing is multiplied by the zeros that a stride leaves between pixels.
"""

import math
from typing import NamedTuple

import triton


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


class Geometry(NamedTuple):
    """What kernels take of an axis pair, in their order."""

    source_height: int
    source_width: int
    height: int
    width: int
    taps: int
    taps_w: int
    step_h: int
    step_w: int
    offset_h: int
    offset_w: int
    tap_offset_h: int
    tap_offset_w: int


def geometry_of(axis_h, axis_w):
    return Geometry(
        axis_h.source_size,
        axis_w.source_size,
        axis_h.positions,
        axis_w.positions,
        axis_h.taps * axis_w.taps,
        max(axis_w.taps, 1),
        axis_h.step,
        axis_w.step,
        axis_h.offset,
        axis_w.offset,
        axis_h.tap_offset,
        axis_w.tap_offset,
    )


PIXELS_PER_SUM = 1024  # that one program of a gradient's sum adds up; fixed, so that sums are reproducible
MOST_SPLITS = 64


def splits_of(pixels):
    """(number of parts, pixels in each): by size alone, so that sums do not depend on the machine."""
    splits = max(min(triton.cdiv(pixels, PIXELS_PER_SUM), MOST_SPLITS), 1)
    return splits, max(triton.cdiv(pixels, splits), 1)
