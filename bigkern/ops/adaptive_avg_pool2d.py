"""adaptive_avg_pool2d: the means of as many windows as asked for, which cover the image.

Window i of n along a dimension of a given size goes from floor(i * size / n) to ceil((i + 1) * size / n). Sums and
their order are avg_pool2d's.
"""

import torch
import torch.nn.functional as F

from ..channel_arguments import FLOATING
from ..norm_arguments import triton_supports
from ..pool_arguments import as_images, empty_images
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 15
REASON = f"PyTorch's own function measured faster in float32, and is taken below {SMALL} elements of any dtype"


def adaptive_avg_pool2d(input, output_size):
    """Means over output_size windows, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: floating tensor [batch, channels, height, width] or [channels, height, width].
        output_size: int or (height, width); None: the input's.

    Returns:
        [..., *output_size] of input's dtype, channels_last if input is. Differentiable any number of times.

    Raises:
        RuntimeError: output_size is not valid, or input is not a floating image.
    """
    pair = (output_size, output_size) if output_size is None or isinstance(output_size, int) else tuple(output_size)
    if len(pair) != 2:
        raise RuntimeError("adaptive_avg_pool2d: output_size must be 2")
    if input.dtype not in FLOATING:
        raise RuntimeError(f"adaptive_avg_pool2d: input must be floating, got {input.dtype}")
    if input.ndim not in (3, 4):
        raise RuntimeError(f"adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got {list(input.shape)}")
    for dim in range(input.ndim - 3, input.ndim):
        if input.shape[dim] == 0:
            raise RuntimeError(
                "adaptive_avg_pool2d(): Expected input to have non-zero size for non-batch dimensions, but input has "
                f"sizes {list(input.shape)} with dimension {dim} being empty"
            )
    sizes = [size if wanted is None else wanted for wanted, size in zip(pair, input.shape[-2:], strict=True)]
    if min(sizes) < 0:
        raise RuntimeError(
            "adaptive_avg_pool2d: elements of output_size must be greater than or equal to 0 but received "
            f"{{{sizes[0]}, {sizes[1]}}}"
        )
    left = input.dtype == torch.float32 or input.numel() < SMALL
    if left and too_small("adaptive_avg_pool2d", REASON, input):
        return F.adaptive_avg_pool2d(input, sizes)
    output = adaptive_avg_pool2d_forward(as_images(input), *sizes)
    return output.squeeze(0) if input.ndim == 3 else output


# ---- adaptive_avg_pool2d_backward ------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, height, width):
    return (empty_images(grad_output, height, width),)


def _backward_torch(grad_output, height, width):
    result = empty_images(grad_output, height, width)
    if 0 in grad_output.shape:
        return (result.zero_(),)
    # Linear in grad_output: the derivative of the forward at any input.
    like = torch.zeros(*grad_output.shape[:2], height, width, dtype=grad_output.dtype, device=grad_output.device)
    return (result.copy_(torch.ops.aten._adaptive_avg_pool2d_backward(grad_output, like)),)


adaptive_avg_pool2d_backward = Kernel(
    "adaptive_avg_pool2d_backward(Tensor grad_output, SymInt height, SymInt width) -> Tensor grad_input",
    module="adaptive_avg_pool2d",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, *_: triton_supports(grad_output)},
    recompute=True,
)


# ---- adaptive_avg_pool2d_forward -------------------------------------------------------------------------------------


def _allocate_forward(input, out_h, out_w):
    return (empty_images(input, out_h, out_w),)


def _forward_torch(input, out_h, out_w):
    return (empty_images(input, out_h, out_w).copy_(F.adaptive_avg_pool2d(input, (out_h, out_w))),)


def _setup_forward(ctx, inputs, output):
    ctx.sizes = inputs[0].shape[2:]


def _backward_forward(ctx, grad_output):
    return adaptive_avg_pool2d_backward(grad_output, *ctx.sizes), None, None


adaptive_avg_pool2d_forward = Kernel(
    "adaptive_avg_pool2d_forward(Tensor input, SymInt out_h, SymInt out_w) -> Tensor output",
    module="adaptive_avg_pool2d",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
