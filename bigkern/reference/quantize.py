"""int8 quantization. Arrays are [outer, groups, inner] with one scale per group."""

import numpy as np


def quantize_forward(input, symmetric):
    """(qinput int8, scale [groups], zero_point [groups] int32, or [0] where symmetric)."""
    lo = np.minimum(input, 0).min((0, 2), initial=0)
    hi = np.maximum(input, 0).max((0, 2), initial=0)
    width = np.maximum(-lo, hi) / 127 if symmetric else (hi / 2 - lo / 2) / 127.5
    # The scale is stored in float32, whose smallest normal number it never goes below.
    scale = np.where(width > 0, np.maximum(width, np.finfo(np.float32).tiny), 1.0)
    scale = np.where(np.isfinite(lo) & np.isfinite(hi), scale, np.nan)
    zero_point = np.zeros(0 if symmetric else len(scale), np.int32)
    lowest = -127 if symmetric else -128
    with np.errstate(invalid="ignore"):
        quotient = np.rint(input / scale[:, None])
        if not symmetric:
            exact = np.clip(np.rint(-128 - lo / scale), -128, 127)
            zero_point = np.where(hi > lo, np.nan_to_num(exact), 0).astype(np.int32)
            quotient = quotient + zero_point[:, None]
    qinput = np.nan_to_num(np.clip(quotient, lowest, 127)).astype(np.int8)
    return qinput, scale, zero_point


def dequantize_forward(qinput, scale, zero_point):
    """((qinput - zero_point) * scale,)"""
    q = qinput.astype(scale.dtype)
    if zero_point is not None:
        q = q - zero_point[:, None]
    return (q * scale[:, None],)
