"""max_pool2d: the largest number of each window of an image.

    output[oh, ow] = max over kh, kw of input[oh * stride - pad + kh * dilation, ow * stride - pad + kw * dilation]

Padding is never chosen; NaN is larger than everything. The forward also keeps where each maximum was, as int32 (half of
the memory traffic of PyTorch's int64); the backward adds each gradient up at its place, in the order of the windows or,
on a GPU, gathered by each element: always the same bits.
"""

import torch
import torch.nn.functional as F

from ..norm_arguments import triton_supports
from ..pool_arguments import Windows, as_images, check_pooled, empty_images, pooled_sizes, windows_of
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 17
SMALL_REASON = f"PyTorch's own function measured faster below {SMALL} elements"


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Maxima over windows, as `torch.nn.functional.max_pool2d`.

    Args:
        input: floating tensor [batch, channels, height, width] or [channels, height, width], contiguous or
            channels_last for speed.
        kernel_size, stride, padding, dilation: int or (vertical, horizontal), in elements; stride None: kernel_size.
        ceil_mode: a last window that is not all inside counts, too.
        return_indices: return (output, indices).

    Returns:
        [..., out_height, out_width] of input's dtype, channels_last if input is. Differentiable any number of times.
        indices: int64, row * width + column of each maximum.

    Raises:
        RuntimeError: the windows are not valid or do not fit, or input is not a floating image.
    """
    windows = windows_of("max_pool2d", kernel_size, stride, padding, dilation, ceil_mode)
    check_pooled("max_pool2d", input, windows)
    if input.shape[-2] * input.shape[-1] >= 2**31:
        raise RuntimeError(f"max_pool2d: a plane may have up to 2**31 - 1 elements, got {tuple(input.shape[-2:])}")
    if input.numel() < SMALL and too_small("max_pool2d", SMALL_REASON, input):
        return F.max_pool2d(input, *windows, return_indices)
    output, indices = max_pool2d_forward(as_images(input), *windows.flat())
    if input.ndim == 3:
        output, indices = output.squeeze(0), indices.squeeze(0)
    return (output, indices.long()) if return_indices else output


# ---- max_pool2d_backward ---------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, indices, height, width, *windows):
    return (empty_images(indices, height, width, grad_output.dtype),)


def _backward_torch(grad_output, indices, height, width, *windows):
    batch, channels = grad_output.shape[:2]
    grads, where = grad_output.flatten(2), indices.flatten(2).long()
    if grads.requires_grad:
        grad_input = grads.new_zeros(batch, channels, height * width).scatter_add(2, where, grads)
    else:
        wide = grads.new_zeros((batch, channels, height * width), dtype=torch.promote_types(grads.dtype, torch.float32))
        grad_input = wide.scatter_add_(2, where, grads.to(wide.dtype)).to(grads.dtype)
    # Fresh memory in the layout that the schema promises.
    result = empty_images(indices, height, width, grad_output.dtype)
    return (result.copy_(grad_input.view(batch, channels, height, width)),)


max_pool2d_backward = Kernel(
    "max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt height, SymInt width, int kernel_h, int kernel_w, "
    "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w) -> Tensor grad_input",
    module="max_pool2d",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    recompute=True,
)


# ---- max_pool2d_forward ----------------------------------------------------------------------------------------------


def _allocate_forward(input, *windows):
    sizes = pooled_sizes(input.shape, _grouped(windows))
    return empty_images(input, *sizes), empty_images(input, *sizes, torch.int32)


def _grouped(flat):
    return Windows(flat[0:2], flat[2:4], flat[4:6], flat[6:8], flat[8])


def _forward_torch(input, *windows):
    output, indices = F.max_pool2d(input, *_grouped(windows), return_indices=True)
    return output, indices.int()


def _setup_forward(ctx, inputs, outputs):
    _, indices = outputs
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.sizes, ctx.windows = inputs[0].shape[2:], inputs[1:9]
    ctx.save_for_backward(indices)


def _backward_forward(ctx, grad_output, _grad_indices):
    if grad_output is None:
        return (None,) * 10
    return max_pool2d_backward(grad_output, *ctx.saved_tensors, *ctx.sizes, *ctx.windows), *(None,) * 9


max_pool2d_forward = Kernel(
    "max_pool2d_forward(Tensor input, int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, "
    "int dilation_h, int dilation_w, bool ceil_mode) -> (Tensor output, Tensor indices)",
    module="max_pool2d",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
