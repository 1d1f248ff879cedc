"""avg_pool2d: the mean of each window of an image.

    output[oh, ow] = sum of the window's elements / divisor

The divisor is the window's size with the padding it covers, without it (count_include_pad False), or the one given. The
sum goes down the rows first and then along the columns. In the backward each element adds up the shares of the windows
that hold it, in one order: the same bits in every run.
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import triton_supports
from ..pool_arguments import as_images, check_pooled, empty_images, output_size, windows_of
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 15
REASON = f"PyTorch's own function measured faster in float32, and is taken below {SMALL} elements of any dtype"


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Means over windows, as `torch.nn.functional.avg_pool2d`.

    Args:
        input: floating tensor [batch, channels, height, width] or [channels, height, width].
        kernel_size, stride, padding: int or (vertical, horizontal), in elements; stride None: kernel_size.
        ceil_mode: a last window that is not all inside counts, too.
        count_include_pad: the zeros of the padding count in the divisor.
        divisor_override: what sums are divided by, instead.

    Returns:
        [..., out_height, out_width] of input's dtype, channels_last if input is. Differentiable any number of times.

    Raises:
        RuntimeError: the windows are not valid or do not fit, the divisor is 0, or input is not a floating image.
    """
    windows = windows_of("avg_pool2d", kernel_size, stride, padding, 1, ceil_mode)
    check_pooled("avg_pool2d", input, windows)
    if divisor_override == 0:
        raise RuntimeError("divisor must be not zero")
    options = (windows.ceil_mode, bool(count_include_pad), divisor_override or 0)
    left = input.dtype == torch.float32 or input.numel() < SMALL
    if left and too_small("avg_pool2d", REASON, input):
        return F.avg_pool2d(input, *windows[:3], *options[:2], divisor_override)
    flat = (*windows.kernel_size, *windows.stride, *windows.padding)
    output = avg_pool2d_forward(as_images(input), *flat, *options)
    return output.squeeze(0) if input.ndim == 3 else output


def _torch_arguments(kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, count_include_pad, divisor):
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w)
    return *pairs, ceil_mode, count_include_pad, divisor or None


# ---- avg_pool2d_backward ---------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, height, width, *windows):
    return (empty_images(grad_output, height, width),)


def _backward_torch(grad_output, height, width, *windows):
    # Linear in grad_output: the derivative of the forward at any input.
    like = torch.zeros(*grad_output.shape[:2], height, width, dtype=grad_output.dtype, device=grad_output.device)
    grad_input = torch.ops.aten.avg_pool2d_backward(grad_output, like, *_torch_arguments(*windows))
    return (empty_images(grad_output, height, width).copy_(grad_input),)


WINDOWS = "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, bool ceil_mode, "
OPTIONS = "bool count_include_pad, int divisor_override"

avg_pool2d_backward = Kernel(
    f"avg_pool2d_backward(Tensor grad_output, SymInt height, SymInt width, {WINDOWS}{OPTIONS}) -> Tensor grad_input",
    module="avg_pool2d",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- avg_pool2d_forward ----------------------------------------------------------------------------------------------


def _allocate_forward(
    input, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, count_include_pad, divisor_override
):
    height = output_size(input.shape[2], kernel_h, stride_h, pad_h, 1, ceil_mode)
    width = output_size(input.shape[3], kernel_w, stride_w, pad_w, 1, ceil_mode)
    return (empty_images(input, height, width),)


def _forward_torch(input, *windows):
    return (F.avg_pool2d(input, *_torch_arguments(*windows)),)


def _setup_forward(ctx, inputs, output):
    input, *ctx.windows = inputs
    ctx.sizes = input.shape[2:]


def _backward_forward(ctx, grad_output):
    return avg_pool2d_backward(grad_output, *ctx.sizes, *ctx.windows), *(None,) * 9


avg_pool2d_forward = Kernel(
    f"avg_pool2d_forward(Tensor input, {WINDOWS}{OPTIONS}) -> Tensor output",
    module="avg_pool2d",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
