"""What ops on images share: a batch as [batch, channels, positions], and how results lie in memory."""

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def as_channels(tensor):
    """[batch, channels, ...] as [batch, channels, positions], a view where its strides allow it."""
    if tensor.ndim == 3:
        return tensor
    return tensor.unsqueeze(-1) if tensor.ndim == 2 else tensor.flatten(2)


def is_channels_last(tensor):
    """Whether the channels of each position of [batch, channels, positions] lie side by side, and positions too."""
    return tensor.stride(1) == 1 and tensor.stride(2) == tensor.shape[1]


def empty_like_channels(tensor):
    """An empty [batch, channels, positions], with its channels last in memory if `tensor`'s are, else contiguous."""
    batch, channels, positions = tensor.shape
    if is_channels_last(tensor):
        return tensor.new_empty(batch, positions, channels).transpose(1, 2)
    return tensor.new_empty(batch, channels, positions)


def check_channel_parameter(op, name, parameter, input, channels):
    """Raises where a parameter of one value per channel does not fit.

    Raises:
        RuntimeError: its size, dtype or device.
    """
    if tuple(parameter.shape) != (channels,):
        raise RuntimeError(f"{name} should contain {channels} elements not {parameter.numel()}")
    if parameter.dtype not in FLOATING:
        raise RuntimeError(f"{op}: {name} must be floating, got {parameter.dtype}")
    if parameter.device != input.device:
        raise RuntimeError(f"{op}: {name} is on {parameter.device}, input on {input.device}")
