"""quantize and dequantize: int8 numbers with a scale per tensor, per channel or per group.

    symmetric:  scale = max|x| / 127                            q = clamp(round(x / scale), -127, 127)
    affine:     scale = (max(x, 0) - min(x, 0)) / 255           q = clamp(round(x / scale) + zero_point, -128, 127)
    back:       x' = (q - zero_point) * scale

Rounding is half to even. A group of zeros gets scale 1. A group that holds NaN or infinity gets scale NaN, so that
dequantize returns NaN instead of plausible numbers. Source: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (2018).

`quantize` has no gradient (rounding is flat almost everywhere); `dequantize` has one for scale. That one is a product
and a sum, which a kernel of its own would not make faster: it is composed from PyTorch's operators.
"""

import torch

from ..registration import Kernel

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scales: float32 for all but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def quantize(input, axis=None, group_size=None, symmetric=True):
    """Rounds a floating tensor to int8 with one scale per group of elements.

    Args:
        input: floating tensor of any shape (...,).
        axis: the dimension that keeps its own scale, as in `torch.quantize_per_channel` (0 on a matrix: one scale per
            row). None: one scale for the whole tensor.
        group_size: splits the last dimension into groups of this many elements, each with its own scale; every other
            dimension keeps its own too. It must divide the last dimension; `axis` must then be None, or 0 on a matrix,
            which means the same.
        symmetric: zero stays exactly zero and there is no zero_point; False spends all 256 values on [min, max].

    Returns:
        (qinput, scale, zero_point). qinput: int8, shape of input. scale: float32 (float64 for float64 input), shape []
        (per tensor), [input.shape[axis]] or [..., last / group_size]. zero_point: int32 of scale's shape, or None where
        symmetric.

    Raises:
        TypeError: input is not floating.
        ValueError: axis out of range, group_size not a divisor of the last dimension, or both at odds.
    """
    if input.dtype not in FLOATING:
        raise TypeError(f"quantize: input must be floating, got {input.dtype}")
    grouped, scale_shape = _grouped_view(input, axis, group_size)
    qinput, scale, zero_point = quantize_forward(grouped, symmetric)
    qinput = qinput.view(input.shape)
    return qinput, scale.view(scale_shape), None if symmetric else zero_point.view(scale_shape)


def dequantize(qinput, scale, zero_point=None, axis=None, dtype=torch.float32):
    """The floating numbers that quantized ones stand for: (qinput - zero_point) * scale.

    Args:
        qinput: int8 tensor of any shape.
        scale, zero_point: as `quantize` returned them. Groups of the last dimension are recognised by scale's shape.
        axis: the dimension that scale belongs to, as given to `quantize`; not needed for per-tensor and grouped scales.
        dtype: of the result.

    Returns:
        A tensor of qinput's shape and the given dtype.

    Raises:
        TypeError: qinput is not int8, or dtype is not floating.
        ValueError: the shape of scale or zero_point does not belong to qinput and axis.
    """
    if qinput.dtype != torch.int8:
        raise TypeError(f"dequantize: qinput must be int8, got {qinput.dtype}")
    if dtype not in FLOATING:
        raise TypeError(f"dequantize: dtype must be floating, got {dtype}")
    if zero_point is not None and zero_point.shape != scale.shape:
        raise ValueError(f"dequantize: zero_point has shape {tuple(zero_point.shape)}, scale has {tuple(scale.shape)}")
    group_size = None
    if axis is None and scale.ndim:
        group_size = _group_size_of(qinput, scale)
    grouped, scale_shape = _grouped_view(qinput, axis, group_size, "dequantize")
    if scale.shape != torch.Size(scale_shape):
        raise ValueError(f"dequantize: scale must have shape {tuple(scale_shape)}, got {tuple(scale.shape)}")
    if zero_point is not None:
        zero_point = zero_point.to(torch.int32).reshape(-1)
    scale = scale.to(scale_dtype(dtype)).reshape(-1)
    return dequantize_forward(grouped, scale, zero_point, dtype).view(qinput.shape)


def _group_size_of(qinput, scale):
    last = qinput.shape[-1] if qinput.ndim else 0
    groups = scale.shape[-1]
    if scale.ndim != qinput.ndim or groups == 0 or last % groups:
        raise ValueError(
            f"dequantize: scale of shape {tuple(scale.shape)} does not split the last dimension of "
            f"{tuple(qinput.shape)} into groups; pass axis for one scale per channel"
        )
    return last // groups


def _grouped_view(tensor, axis, group_size, op="quantize"):
    """(tensor as [outer, groups, inner] with one scale per group, shape of the scales)."""
    shape = tensor.shape
    if group_size is not None:
        if axis is not None and not (tensor.ndim == 2 and axis in (0, -2)):
            raise ValueError(f"{op}: group_size goes with axis=None, or axis=0 on a matrix; got axis={axis}")
        last = shape[-1] if tensor.ndim else 0
        if group_size < 1 or last % group_size:
            raise ValueError(f"{op}: group_size {group_size} does not divide the last dimension, {last}")
        scale_shape = (*shape[:-1], last // group_size)
        return tensor.reshape(1, tensor.numel() // group_size, group_size), scale_shape
    if axis is None:
        return tensor.reshape(1, 1, tensor.numel()), ()
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ValueError(f"{op}: axis {axis} is out of range for a tensor of {tensor.ndim} dimensions")
    axis %= tensor.ndim
    outer, inner = shape[:axis].numel(), shape[axis + 1 :].numel()
    return tensor.reshape(outer, shape[axis], inner), (shape[axis],)


# ---- quantize_forward ------------------------------------------------------------------------------------------------


def _allocate_quantize(input, symmetric):
    groups = input.shape[1]
    return (
        input.new_empty(input.shape, dtype=torch.int8),
        input.new_empty(groups, dtype=scale_dtype(input.dtype)),
        input.new_empty(0 if symmetric else groups, dtype=torch.int32),
    )


def _quantize_torch(input, symmetric):
    x = input.to(scale_dtype(input.dtype))
    tiny = torch.finfo(x.dtype).tiny
    if x.numel():
        lo, hi = x.amin((0, 2)).clamp(max=0), x.amax((0, 2)).clamp(min=0)
    else:
        lo = hi = x.new_zeros(x.shape[1])
    finite = torch.isfinite(lo) & torch.isfinite(hi)
    scale = torch.maximum(-lo, hi) / 127 if symmetric else (hi / 2 - lo / 2) / 127.5
    scale = torch.where(scale > 0, scale.clamp(min=tiny), torch.ones_like(scale)).where(finite, float("nan"))
    zero_point = x.new_zeros(0, dtype=torch.int32)
    quotient = torch.round(x / scale[:, None])
    if not symmetric:
        exact = torch.round(-128 - lo / scale).clamp(-128, 127)
        zero_point = torch.where(hi > lo, exact, torch.zeros_like(exact)).nan_to_num(0).to(torch.int32)
        quotient = quotient + zero_point[:, None]
    qinput = quotient.clamp(-127 if symmetric else -128, 127).nan_to_num(0).to(torch.int8)
    return qinput, scale, zero_point


def _gpu_supports_quantize(input, symmetric):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


quantize_forward = Kernel(
    "quantize_forward(Tensor input, bool symmetric) -> (Tensor qinput, Tensor scale, Tensor zero_point)",
    module="quantize",
    allocate=_allocate_quantize,
    torch=_quantize_torch,
    supports={"cpu": None, "triton": _gpu_supports_quantize, "cuda": _gpu_supports_quantize},
)


# ---- dequantize_forward ----------------------------------------------------------------------------------------------


def _allocate_dequantize(qinput, scale, zero_point, dtype):
    return (qinput.new_empty(qinput.shape, dtype=dtype),)


def _dequantize_torch(qinput, scale, zero_point, dtype):
    q = qinput.to(scale.dtype)
    if zero_point is not None:
        q = q - zero_point[:, None].to(scale.dtype)
    return ((q * scale[:, None]).to(dtype),)


def _gpu_supports_dequantize(qinput, scale, zero_point, dtype):
    return "float64 is left to PyTorch on a GPU" if dtype == torch.float64 else None


def _setup_dequantize(ctx, inputs, output):
    qinput, scale, zero_point, _ = inputs
    ctx.save_for_backward(qinput, scale, zero_point)


def _backward_dequantize(ctx, grad_output):
    qinput, scale, zero_point = ctx.saved_tensors
    q = qinput.to(scale.dtype)
    if zero_point is not None:
        q = q - zero_point[:, None].to(scale.dtype)
    return None, (grad_output.to(scale.dtype) * q).sum((0, 2)), None, None


dequantize_forward = Kernel(
    "dequantize_forward(Tensor qinput, Tensor scale, Tensor? zero_point, ScalarType dtype) -> Tensor",
    module="quantize",
    allocate=_allocate_dequantize,
    torch=_dequantize_torch,
    supports={"cpu": None, "triton": _gpu_supports_dequantize, "cuda": _gpu_supports_dequantize},
    setup_context=_setup_dequantize,
    backward=_backward_dequantize,
)
