"""What conv2d and conv_transpose2d share: checks, sizes, memory formats, and where PyTorch is faster."""

import torch

from .registration import autocast_enabled, too_small

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pair(value, name, op) -> tuple[int, int]:
    """An int, or one or two of them, as (vertical, horizontal)."""
    if isinstance(value, (int, torch.SymInt)):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):
        return value[0], value[-1]
    raise ValueError(f"{op}: {name} must be an int or a tuple of two, got {value!r}")


def check_tensors(op, input, weight, bias, groups, transposed):
    """Raises where input, weight and bias do not go together.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ (and autocast does not make them one).
        ValueError: shapes, groups or devices do not fit.
    """
    if input.ndim not in (3, 4):
        raise ValueError(f"{op}: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}")
    if weight.ndim != 4:
        raise ValueError(f"{op}: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if not isinstance(groups, (int, torch.SymInt)) or groups < 1:
        raise ValueError(f"{op}: groups must be a positive int, got {groups!r}")
    channels = input.shape[-3]
    expected = weight.shape[0] if transposed else weight.shape[1] * groups
    if weight.shape[0] % groups or channels != expected:
        raise ValueError(
            f"{op}: input has {channels} channels, but weight of shape {tuple(weight.shape)} with groups={groups} "
            f"takes {expected}, and its first size must be a multiple of groups"
        )
    if 0 in weight.shape[1:] or 0 in input.shape[-3:]:
        raise ValueError(
            f"{op}: only the batch may be empty, got input {tuple(input.shape)}, weight {tuple(weight.shape)}"
        )
    out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"{op}: bias must have shape {(out_channels,)}, got {tuple(bias.shape)}")
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_dtype_and_device(op, name, tensor, input)


def _check_dtype_and_device(op, name, tensor, input):
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be floating, got {tensor.dtype}")
    if tensor.device != input.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, input on {input.device}")
    if tensor.dtype != input.dtype:
        casts_both = autocast_enabled(input.device.type) and torch.float64 not in (input.dtype, tensor.dtype)
        if not casts_both:
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}, input has {input.dtype}")


def check_geometry(op, stride, padding, dilation):
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(values) < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {tuple(values)}")


def conv_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def transposed_size(size, kernel, stride, padding, output_padding, dilation):
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


def _is_channels_last(tensor) -> bool:
    """Whether channels lie nearest to each other in memory, padding and ambiguous sizes judged as PyTorch does."""
    _, C, H, W = tensor.shape
    image_stride, channel_stride, row_stride, column_stride = tensor.stride()
    least = channel_stride
    if least == 0:
        return False
    for size, stride in ((C, channel_stride), (W, column_stride), (H, row_stride)):
        if size == 0 or stride < least:
            return False
        least = stride * size if size > 1 else stride
    # Sizes of 1 all along leave it open; then it is contiguous.
    return image_stride >= least and least != channel_stride


def memory_format(input, weight):
    """That of a convolution's result: channels_last where one of the two has it, as PyTorch has it."""
    last = _is_channels_last(input) or _is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format


def empty_image(like, shape, format):
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)


def torch_is_faster(input):
    """For a convolution on a CPU; the reason, or None."""
    if input.is_cpu and input.dtype in (torch.float32, torch.bfloat16):
        return (
            "oneDNN, which PyTorch has for float32 and bfloat16 on a CPU, measured up to twice as fast "
            "(benchmarks/bench_conv2d.py)"
        )
    return None


def torch_is_faster_forward(input, weight, groups):
    """For the forward of conv2d on a CPU; the reason, or None."""
    depth = weight.shape[1] * weight.shape[2] * weight.shape[3]
    if input.is_cpu and input.dtype == torch.float64 and groups == 1 and depth <= 16:
        return "PyTorch measured faster in float64 at sums of 16 terms or fewer (benchmarks/bench_conv2d.py)"
    return torch_is_faster(input)


def leave_to_torch(op, input, weight, bias) -> bool:
    """True on `auto`, eagerly, where PyTorch is faster at a convolution: nothing of ours then lies in between."""
    reason = torch_is_faster(input)
    return reason is not None and too_small(op, reason, input, weight, bias)


def is_strided_depthwise(weight, stride, groups) -> bool:
    """oneDNN has no fast gradients for these."""
    return weight.shape[1] == 1 and groups > 1 and max(stride) > 1


def torch_is_faster_backward(input, weight, stride, groups, needs_input_grad):
    """For the gradients of a convolution on a CPU, whose input is `input`; the reason, or None."""
    channels = weight.shape[1]
    if is_strided_depthwise(weight, stride, groups):
        return None
    few = {torch.float64: 4, torch.float16: 1}.get(input.dtype, 0)
    if input.is_cpu and needs_input_grad and groups == 1 and channels <= few:
        return "PyTorch measured faster at the gradient of an input of so few channels (benchmarks/bench_conv2d.py)"
    return torch_is_faster(input)


def triton_supports(tensor):
    return "float64 is left to PyTorch on a GPU" if tensor.dtype == torch.float64 else None
