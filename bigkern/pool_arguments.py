"""What the pooling ops share: windows given as PyTorch gives them, its errors, and how results lie in memory."""

from typing import NamedTuple

import torch

from .channel_arguments import FLOATING


class Windows(NamedTuple):
    """Windows over [height, width]; each pair is (vertical, horizontal)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def flat(self):
        """As a kernel takes them."""
        return (*self.kernel_size, *self.stride, *self.padding, *self.dilation, self.ceil_mode)


def windows_of(op, kernel_size, stride, padding, dilation, ceil_mode):
    """Windows from ints or pairs; stride None or empty: that of the kernel.

    Raises:
        RuntimeError: a number is out of range, or there are neither one nor two of them.
    """

    def pair(name, value):
        if isinstance(value, int):
            return (value, value)
        value = tuple(value)
        if len(value) not in (1, 2):
            raise RuntimeError(f"{op}: {name} must either be a single int, or a tuple of two ints")
        return (value[0], value[-1])

    size = pair("kernel_size", kernel_size)
    step = pair("stride", stride) if stride is not None and stride != () and stride != [] else size
    padding, dilation = pair("padding", padding), pair("dilation", dilation)
    if min(size) <= 0:
        raise RuntimeError(f"{op}: kernel_size must be greater than zero, got {size}")
    if 0 in step:
        raise RuntimeError("stride should not be zero")
    if min(step) < 0:
        raise RuntimeError(f"{op}: stride must be greater than zero, got {step}")
    if min(dilation) <= 0:
        raise RuntimeError(
            f"dilation should be greater than zero, but got dilationH: {dilation[0]} dilationW: {dilation[1]}"
        )
    for kernel, pad, spread in zip(size, padding, dilation, strict=True):
        if pad < 0:
            raise RuntimeError(f"pad must be non-negative, but got pad: {pad}")
        if pad > ((kernel - 1) * spread + 1) // 2:
            raise RuntimeError(
                f"pad should be at most half of effective kernel size, but got pad={pad}, kernel_size={kernel} and "
                f"dilation={spread}"
            )
    return Windows(size, step, padding, dilation, bool(ceil_mode))


def output_size(size, kernel, stride, pad, dilation, ceil_mode):
    """How many windows there are along one dimension; none starts in the padding behind the end."""
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + pad else count


def pooled_sizes(shape, windows):
    """(height, width) of the result for an input [..., height, width]."""
    return tuple(output_size(shape[dim - 2], *(pair[dim] for pair in windows[:4]), windows.ceil_mode) for dim in (0, 1))


def check_pooled(op, input, windows):
    """Raises where the input cannot be pooled.

    Raises:
        RuntimeError: dtype, dimensions, or windows that do not fit into it.
    """
    if input.dtype not in FLOATING:
        raise RuntimeError(f"{op}: input must be floating, got {input.dtype}")
    if input.ndim not in (3, 4):
        raise RuntimeError("non-empty 3D or 4D (batch mode) tensor expected for input")
    if 0 in input.shape[input.ndim - 3 :]:
        raise RuntimeError(
            f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{list(input.shape)}"
        )
    sizes = pooled_sizes(input.shape, windows)
    if min(sizes) < 1:
        before, after = ("x".join(map(str, (input.shape[-3], *pair))) for pair in (input.shape[-2:], sizes))
        raise RuntimeError(f"Given input size: ({before}). Calculated output size: ({after}). Output size is too small")


def as_images(input):
    """[batch, channels, height, width], its channels last in memory or else contiguous."""
    images = input if input.ndim == 4 else input.unsqueeze(0)
    return images if is_channels_last(images) else images.contiguous()


def is_channels_last(images):
    return images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)


def empty_images(like, height, width, dtype=None):
    """An empty [batch, channels, height, width] in the layout of `like`."""
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)
