"""int8 quantization. Arrays are [outer, groups, inner] with one scale per group."""

import numpy as np

from .array_module import array_module, largest


def quantize_forward(input, symmetric):
    """(qinput int8, scale [groups], zero_point [groups] int32, or [0] where symmetric)."""
    xp = array_module(input)
    hi = largest(input, (0, 2), initial=0)
    lo = -largest(-input, (0, 2), initial=0)
    width = xp.maximum(-lo, hi) / 127 if symmetric else (hi / 2 - lo / 2) / 127.5
    # The scale is stored in float32, whose smallest normal number it never goes below.
    scale = xp.where(width > 0, xp.maximum(width, np.finfo(np.float32).tiny), 1.0)
    scale = xp.where(xp.isfinite(lo) & xp.isfinite(hi), scale, np.nan)
    zero_point = xp.zeros(0 if symmetric else len(scale), np.int32)
    lowest = -127 if symmetric else -128
    with np.errstate(invalid="ignore"):
        quotient = xp.rint(input / scale[:, None])
        if not symmetric:
            exact = xp.clip(xp.nan_to_num(xp.rint(-128 - lo / scale)), -128, 127)
            zero_point = xp.where(hi > lo, exact, 0).astype(np.int32)
            quotient = quotient + zero_point[:, None]
    qinput = xp.clip(xp.nan_to_num(quotient), lowest, 127).astype(np.int8)
    return qinput, scale, zero_point


def dequantize_forward(qinput, scale, zero_point):
    """((qinput - zero_point) * scale,)"""
    q = qinput.astype(scale.dtype)
    if zero_point is not None:
        q = q - zero_point[:, None]
    return (q * scale[:, None],)
