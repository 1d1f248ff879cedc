"""weight_only_linear: a linear layer whose weights are kept in int8 or int4 and become floating inside the kernel.

    w[n, k] = (q[n, k] - zero_point[n, k / group]) * scale[n, k / group]            y = act(x @ w.T + bias)

Nothing is lost but the weights' own rounding: the input stays floating. With few rows, as when a language model writes
one token after another, the time of a linear layer is that of reading its weights, and they are 2 to 8 times smaller.
Source: Frantar et al., "GPTQ" (2022), and Lin et al., "AWQ" (2023), for groups along the input features.

Weights are constants here. The gradient flows to the input and the bias, which is what adapters (Dettmers et al.,
"QLoRA", 2023) train through; it is a product of floating matrices, composed from PyTorch's operators.
"""

import torch
import torch.nn.functional as F

from ..registration import Kernel, autocast_enabled, cast_floating
from .linear_act import ACTIVATION_GRADIENTS, ACTIVATIONS, NEEDS_PRE_ACTIVATION
from .quantize import FLOATING, quantize, scale_dtype

BITS = (4, 8)
# What an int4 without a zero point means: 0 to 15 stand for -8 to 7.
INT4_ZERO_POINT = 8


def weight_only_linear(input, qweight, weight_scale, weight_zero_point=None, bias=None, activation="none"):
    """act(input @ weight.T + bias), where weight is what the quantized numbers stand for.

    Args:
        input: floating tensor [..., in_features].
        qweight: int8 [out_features, in_features]; or uint8 [out_features, ceil(in_features / 2)], which holds two 4-bit
            numbers to a byte, the lower half first. `bigkern.quantize_weight` makes it.
        weight_scale: floating [out_features, groups]; each scale belongs to in_features / groups neighbours. Used in
            float32 (float64 for float64 input).
        weight_zero_point: int32 of weight_scale's shape, or None: 0 for int8, 8 for 4-bit numbers.
        bias: [out_features] of input's dtype (any floating dtype under autocast), or None.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh".

    Returns:
        [..., out_features] of input's dtype. Differentiable in input and bias, any number of times.

    Raises:
        TypeError: a dtype is none of these.
        ValueError: shapes or devices do not go together, groups do not divide in_features (for 4-bit numbers: into
            groups of even size), weight_scale asks for a gradient, or the activation is none of these.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"weight_only_linear: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
    if autocast_enabled(input.device.type):
        # Not by the kernel's autocast rule, which would round weight_scale too.
        dtype = torch.get_autocast_dtype(input.device.type)
        input, bias = cast_floating(input, dtype), cast_floating(bias, dtype)
    _check(input, qweight, weight_scale, weight_zero_point, bias)
    weight_scale = weight_scale.to(scale_dtype(input.dtype)).contiguous()
    if weight_zero_point is not None:
        weight_zero_point = weight_zero_point.contiguous()
    rows = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    output = weight_only_linear_forward(rows, qweight.contiguous(), weight_scale, weight_zero_point, bias, activation)
    return output.view(*input.shape[:-1], qweight.shape[0])


def _check(input, qweight, weight_scale, weight_zero_point, bias):
    op = "weight_only_linear"
    if input.dtype not in FLOATING:
        raise TypeError(f"{op}: input must be floating, got {input.dtype}")
    if qweight.dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"{op}: qweight must be int8, or uint8 with 4-bit numbers in pairs, got {qweight.dtype}")
    if weight_scale.dtype not in FLOATING:
        raise TypeError(f"{op}: weight_scale must be floating, got {weight_scale.dtype}")
    if weight_scale.requires_grad:
        raise ValueError(f"{op}: weight_scale asks for a gradient, but quantized weights are constants here")
    if not input.ndim:
        raise ValueError(f"{op}: input must be [..., in_features], got a tensor without dimensions")
    K, int4 = input.shape[-1], qweight.dtype == torch.uint8
    width = (K + 1) // 2 if int4 else K
    if qweight.ndim != 2 or qweight.shape[1] != width:
        raise ValueError(
            f"{op}: input of shape {tuple(input.shape)} needs a qweight of [out_features, {width}] "
            f"({qweight.dtype}), got {tuple(qweight.shape)}"
        )
    N = qweight.shape[0]
    if weight_scale.ndim != 2 or weight_scale.shape[0] != N:
        raise ValueError(f"{op}: weight_scale must be [{N}, groups], got {tuple(weight_scale.shape)}")
    groups = weight_scale.shape[1]
    if groups == 0 or K % groups:
        raise ValueError(f"{op}: {groups} groups do not divide in_features, {K}")
    if int4 and groups > 1 and K // groups % 2:
        raise ValueError(f"{op}: groups of 4-bit numbers must have an even size, got {K // groups}")
    if weight_zero_point is not None:
        if weight_zero_point.dtype != torch.int32:
            raise TypeError(f"{op}: weight_zero_point must be int32, got {weight_zero_point.dtype}")
        if weight_zero_point.shape != weight_scale.shape:
            raise ValueError(
                f"{op}: weight_zero_point has shape {tuple(weight_zero_point.shape)}, "
                f"weight_scale has {tuple(weight_scale.shape)}"
            )
    if bias is not None:
        if bias.shape != (N,):
            raise ValueError(f"{op}: bias must have shape ({N},), got {tuple(bias.shape)}")
        if bias.dtype != input.dtype:
            raise TypeError(f"{op}: bias has dtype {bias.dtype}, input has {input.dtype}")
    others = {"qweight": qweight, "weight_scale": weight_scale, "weight_zero_point": weight_zero_point, "bias": bias}
    for name, other in others.items():
        if other is not None and other.device != input.device:
            raise ValueError(f"{op}: {name} is on {other.device}, input on {input.device}")


# ---- quantized weights -----------------------------------------------------------------------------------------------


def quantize_weight(weight, bits=4, group_size=None, symmetric=True):
    """Rounds a weight matrix to 8-bit or 4-bit numbers with one scale per group, for `weight_only_linear`.

        symmetric:  scale = max|w| / 127 or / 7               q = round(w / scale)
        affine:     scale = (max(w, 0) - min(w, 0)) / 255 or / 15, and a zero_point

    Args:
        weight: floating [out_features, in_features].
        bits: 8 or 4.
        group_size: neighbours of a row that share a scale; it must divide in_features. None: a whole row.
        symmetric: zero stays exactly zero and there is no zero point; False spends all values on [min, max].

    Returns:
        (qweight, weight_scale, weight_zero_point) as `weight_only_linear` takes them; weight_zero_point is None where
        symmetric. A group of zeros gets scale 1, one with a NaN or an infinity scale NaN.

    Raises:
        TypeError: weight is not floating.
        ValueError: bits or group_size are none of these, or 4-bit groups of odd size.
    """
    if weight.dtype not in FLOATING:
        raise TypeError(f"quantize_weight: weight must be floating, got {weight.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"quantize_weight: weight must be [out_features, in_features], got {tuple(weight.shape)}")
    if bits not in BITS:
        raise ValueError(f"quantize_weight: bits must be 4 or 8, got {bits}")
    N, K = weight.shape
    group_size = K if group_size is None else group_size
    if group_size < 1 or K % group_size:
        raise ValueError(f"quantize_weight: group_size {group_size} does not divide in_features, {K}")
    groups = K // group_size
    if bits == 8:
        qweight, scale, zero_point = quantize(weight.detach(), group_size=group_size, symmetric=symmetric)
        return qweight, scale, zero_point
    if groups > 1 and group_size % 2:
        raise ValueError(f"quantize_weight: groups of 4-bit numbers must have an even size, got {group_size}")
    w = weight.detach().to(scale_dtype(weight.dtype)).reshape(N, groups, group_size)
    lo, hi = w.amin(2).clamp(max=0), w.amax(2).clamp(min=0)
    scale = torch.maximum(-lo, hi) / 7 if symmetric else (hi - lo) / 15
    scale = torch.where(scale > 0, scale.clamp(min=torch.finfo(w.dtype).tiny), torch.ones_like(scale))
    scale = scale.where(torch.isfinite(lo) & torch.isfinite(hi), float("nan"))
    zero_point = torch.full_like(scale, INT4_ZERO_POINT)
    if not symmetric:
        zero_point = torch.round(-lo / scale).nan_to_num(0).clamp(0, 15)
    q = (torch.round(w / scale[:, :, None]) + zero_point[:, :, None]).nan_to_num(0).clamp(0, 15)
    packed = pack_int4(q.to(torch.uint8).reshape(N, K))
    return packed, scale, None if symmetric else zero_point.to(torch.int32)


def pack_int4(values):
    """uint8 [N, K] of numbers from 0 to 15 -> uint8 [N, ceil(K / 2)], two to a byte, the lower half first."""
    if values.shape[1] % 2:
        values = F.pad(values, (0, 1))
    return values[:, ::2] | values[:, 1::2] << 4


def unpack_int4(packed, in_features):
    """uint8 [N, ceil(in_features / 2)] -> uint8 [N, in_features] of numbers from 0 to 15."""
    N, pairs = packed.shape
    return torch.stack((packed & 15, packed >> 4), dim=2).reshape(N, 2 * pairs)[:, :in_features]


def dequantize_weight(qweight, weight_scale, weight_zero_point=None, in_features=None, dtype=torch.float32):
    """The floating weight [out_features, in_features] that quantized numbers stand for.

    Args:
        qweight, weight_scale, weight_zero_point: as `quantize_weight` returned them.
        in_features: needed only for 4-bit weights with an odd number of columns.
        dtype: of the result, which is computed in weight_scale's.
    """
    int4 = qweight.dtype == torch.uint8
    K = in_features if in_features is not None else qweight.shape[1] * (2 if int4 else 1)
    q = (unpack_int4(qweight, K) if int4 else qweight).to(weight_scale.dtype)
    N, groups = weight_scale.shape
    zero_point = INT4_ZERO_POINT if int4 else 0
    if weight_zero_point is not None:
        zero_point = weight_zero_point[:, :, None].to(weight_scale.dtype)
    return ((q.reshape(N, groups, K // groups) - zero_point) * weight_scale[:, :, None]).reshape(N, K).to(dtype)


# ---- weight_only_linear_forward --------------------------------------------------------------------------------------


def _allocate(input, qweight, weight_scale, weight_zero_point, bias, activation):
    return (input.new_empty(input.shape[0], qweight.shape[0]),)


def _weight_only_linear_torch(input, qweight, weight_scale, weight_zero_point, bias, activation):
    weight = dequantize_weight(qweight, weight_scale, weight_zero_point, input.shape[1], input.dtype)
    return (ACTIVATIONS[activation](F.linear(input, weight, bias)),)


def _gpu_supports(input, qweight, weight_scale, weight_zero_point, bias, activation):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def _setup_context(ctx, inputs, output):
    input, qweight, weight_scale, weight_zero_point, bias, activation = inputs
    ctx.activation = activation
    recompute = activation in NEEDS_PRE_ACTIVATION
    saved = None if recompute or activation == "none" else output
    wanted = (input, bias) if recompute else (None, None)
    ctx.save_for_backward(qweight, weight_scale, weight_zero_point, saved, *wanted)
    ctx.in_features = input.shape[1]


def _backward(ctx, grad_output):
    qweight, weight_scale, weight_zero_point, saved, input, bias = ctx.saved_tensors
    weights = qweight, weight_scale, weight_zero_point
    if ctx.activation in NEEDS_PRE_ACTIVATION:
        saved = weight_only_linear_forward(input, *weights, bias, "none")
    grad_z = ACTIVATION_GRADIENTS[ctx.activation](grad_output, saved)
    needs_input, _, _, _, needs_bias, _ = ctx.needs_input_grad
    grad_input = grad_bias = None
    if needs_input:
        grad_input = grad_z @ dequantize_weight(*weights, ctx.in_features, grad_z.dtype)
    if needs_bias:
        grad_bias = grad_z.sum(0)
    return grad_input, None, None, None, grad_bias, None


weight_only_linear_forward = Kernel(
    "weight_only_linear_forward(Tensor input, Tensor qweight, Tensor weight_scale, Tensor? weight_zero_point, "
    "Tensor? bias, str activation) -> Tensor output",
    module="weight_only_linear",
    allocate=_allocate,
    torch=_weight_only_linear_torch,
    supports={"cpu": None, "triton": _gpu_supports},
    setup_context=_setup_context,
    backward=_backward,
)
