"""Cases of quantize and dequantize."""

import torch

import bigkern

from .case import Case


def rounding(input, qinput, scale, zero_point, axis):
    """How far each x / scale is from the integer that stands for it: at most 1/2, and the same whichever way a tie that
    only rounding makes is broken, which the integers themselves are not."""
    if axis is not None:
        shape = [1] * input.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero_point = zero_point.reshape(shape) if zero_point is not None else None
    steps = qinput.double() - (zero_point.double() if zero_point is not None else 0)
    return (input.double() / scale.double() - steps).abs().to(scale.dtype)


def scale_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def quantize_composed(input, axis, symmetric):
    """The formula of bigkern.quantize as a PyTorch user would write it."""
    x = input.to(scale_dtype(input.dtype))
    others = [d for d in range(x.ndim) if axis is None or d != axis]
    if symmetric:
        scale = x.abs().amax(others, keepdim=True) / 127
        qinput, zero_point = torch.round(x / scale).clamp(-127, 127).to(torch.int8), None
    else:
        lo, hi = x.amin(others, keepdim=True).clamp(max=0), x.amax(others, keepdim=True).clamp(min=0)
        scale = (hi - lo) / 255
        zero_point = torch.round(-128 - lo / scale).clamp(-128, 127)
        qinput = (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8)
        zero_point = zero_point.to(torch.int32).flatten()
    shape = () if axis is None else (input.shape[axis],)
    return qinput, scale.reshape(shape), None if zero_point is None else zero_point.reshape(shape)


def _quantize(name, shape, axis, symmetric):
    def outcome(quantize):
        def call(input):
            qinput, scale, zero_point = quantize(input, axis=axis, symmetric=symmetric)
            found = {"scale": scale, "rounding": rounding(input, qinput, scale, zero_point, axis)}
            return found if symmetric else {**found, "zero_point": zero_point}

        return call

    return Case(
        "quantize",
        name,
        lambda: {"input": torch.randn(shape) * 3 + 1},
        outcome(bigkern.quantize),
        outcome(quantize_composed),
    )


def _dequantize(name, axis, symmetric):
    def inputs():
        groups = () if axis is None else (37,)
        return {
            "qinput": torch.randint(-128, 128, (37, 65), dtype=torch.int8),
            "scale": torch.rand(groups) + 0.1,
            "zero_point": torch.randint(-20, 20, groups, dtype=torch.int32),
        }

    def ours(qinput, scale, zero_point):
        zero_point = None if symmetric else zero_point
        dtype = scale.dtype
        scale = scale.to(scale_dtype(dtype))
        return bigkern.dequantize(qinput, scale, zero_point, axis=axis, dtype=dtype)

    def theirs(qinput, scale, zero_point):
        wide = scale.to(scale_dtype(scale.dtype))
        steps = qinput if symmetric else qinput - (zero_point if axis is None else zero_point[:, None])
        return (steps * (wide if axis is None else wide[:, None])).to(scale.dtype)

    return Case("quantize", name, inputs, ours, theirs, ("scale",))


QUANTIZE = [
    _quantize("per tensor", (37, 65), None, True),
    _quantize("per row", (37, 65), 0, True),
    _quantize("per channel, axis 1", (5, 12, 33), 1, True),
    _quantize("per tensor, affine", (37, 65), None, False),
    _quantize("per row, affine", (37, 65), 0, False),
    _dequantize("back, per tensor", None, True),
    _dequantize("back, per row, affine", 0, False),
]
