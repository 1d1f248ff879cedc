"""group_norm: the channels of each image in groups, each group shifted to mean 0 and scaled to variance 1.

    output = (input - mean) * rstd * weight + bias            rstd = 1 / sqrt(var + eps)

mean and var are of one group of one image, weight and bias of a channel: a group is a row of layer_norm with one weight
for every plane of it. With g the sums of a plane weighted by its channel's weight, the backward is layer_norm's; the
gradients of weight and bias are added up over the images in their order. The variance is taken around the mean in
float32 or better. Source: Wu, He, "Group Normalization" (2018).
"""

import torch
import torch.nn.functional as F

from ..channel_arguments import FLOATING
from ..norm_arguments import one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small

# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 15
REASON = f"PyTorch's own function measured faster in float32, and is taken below {SMALL} elements of any dtype"
CHANNELS_LAST_REASON = "the kernel reads planes; PyTorch's own function has a kernel for channels_last"


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """Group normalization, as `torch.nn.functional.group_norm`.

    Args:
        input: floating tensor [batch, channels, ...].
        num_groups: int that divides channels.
        weight, bias: floating [channels], or None. Any floating dtype, unlike PyTorch.
        eps: added to the variance.

    Returns:
        A tensor of input's shape and dtype (float32 under autocast on CUDA, as PyTorch's), contiguous where the kernels
        compute it. Differentiable in input, weight and bias, any number of times.

    Raises:
        ValueError: a group has a single value.
        RuntimeError: num_groups does not divide channels; sizes, dtypes or devices do not go together.
    """
    _check(input, num_groups, weight, bias)
    # PyTorch's own backward raises where there is a bias and no weight.
    if one_dtype(input, weight, bias) and (weight is not None or bias is None):
        left = input.dtype == torch.float32 or input.numel() < SMALL
        reason = REASON if left else CHANNELS_LAST_REASON
        if (left or _is_channels_last(input)) and too_small("group_norm", reason, input, weight, bias):
            return F.group_norm(input, num_groups, weight, bias, eps)
    planes = input.contiguous().view(input.shape[0], input.shape[1], input.shape[2:].numel())
    output, _, _ = group_norm_forward(planes, weight, bias, num_groups, float(eps))
    return output.view(input.shape)


def _is_channels_last(input):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(input.ndim)
    return layout is not None and not input.is_contiguous() and input.is_contiguous(memory_format=layout)


def _check(input, num_groups, weight, bias):
    if input.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.ndim}")
    if input.dtype not in FLOATING:
        raise RuntimeError(f"group_norm: input must be floating, got {input.dtype}")
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    channels, shape = input.shape[1], list(input.shape)
    if channels % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{shape} and num_groups={num_groups}"
        )
    sizes = [input.shape[0] * channels // num_groups, num_groups, *input.shape[2:]]
    if sizes[0] * input.shape[2:].numel() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {sizes}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if tuple(parameter.shape) != (channels,):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(parameter.shape)} and input of shape {shape}"
            )
        if parameter.dtype not in FLOATING:
            raise RuntimeError(f"group_norm: {name} must be floating, got {parameter.dtype}")
        if parameter.device != input.device:
            raise RuntimeError(f"group_norm: {name} is on {parameter.device}, input on {input.device}")


def _rows(tensor, num_groups):
    """[batch, channels, positions] as [batch, num_groups, elements]"""
    batch, channels, positions = tensor.shape
    return tensor.reshape(batch, num_groups, channels // num_groups * positions)


def _centered(x, num_groups):
    """(x - mean, mean), grouped; the second step takes away what rounding left of a large mean."""
    rows = _rows(x, num_groups)
    mean = rows.mean(2, keepdim=True)
    rest = (rows - mean).mean(2, keepdim=True)
    return (rows - mean) - rest, mean + rest


# ---- group_norm_backward ---------------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(grad_output, input, weight, bias, mean, rstd, num_groups, needs_input, needs_weight, needs_bias):
    return (
        input.new_empty(input.shape if needs_input else 0),
        weight.new_empty(weight.shape) if needs_weight else input.new_empty(0),
        bias.new_empty(bias.shape) if needs_bias else input.new_empty(0),
    )


def _backward_torch(grad_output, input, weight, bias, mean, rstd, num_groups, needs_input, needs_weight, needs_bias):
    """The kernels' function in PyTorch's operators, differentiable in grad_output, input and weight."""
    grad, rstd = grad_output.to(rstd.dtype), rstd[:, :, None]
    centered, _ = _centered(input.to(rstd.dtype), num_groups)
    if torch.is_grad_enabled():
        variance = centered.square().mean(2, keepdim=True)
        # The value that the forward saved, with the derivative that it had not: eps is not needed again.
        rstd = (rstd**-2 + (variance - variance.detach())).rsqrt()
    normalized = centered * rstd
    scaled = _rows(grad if weight is None else grad * weight.to(grad.dtype)[:, None], num_groups)
    slope = (scaled * normalized).mean(2, keepdim=True)
    grad_input = rstd * (scaled - scaled.mean(2, keepdim=True) - normalized * slope)
    return (
        grad_input.view(input.shape).to(input.dtype) if needs_input else input.new_empty(0),
        (grad * normalized.view(input.shape)).sum((0, 2)).to(weight.dtype) if needs_weight else input.new_empty(0),
        grad.sum((0, 2)).to(bias.dtype) if needs_bias else input.new_empty(0),
    )


group_norm_backward = Kernel(
    "group_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, "
    "int num_groups, bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    module="group_norm",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, input, *_: triton_supports(input)},
    recompute=True,
)


# ---- group_norm_forward ----------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, bias, num_groups, eps):
    statistics = {"dtype": statistics_dtype(input.dtype)}
    return (
        input.new_empty(input.shape),
        input.new_empty((input.shape[0], num_groups), **statistics),
        input.new_empty((input.shape[0], num_groups), **statistics),
    )


def _forward_torch(input, weight, bias, num_groups, eps):
    centered, mean = _centered(input.to(statistics_dtype(input.dtype)), num_groups)
    rstd = (centered.square().mean(2, keepdim=True) + eps).rsqrt()
    output = (centered * rstd).view(input.shape)
    if weight is not None:
        output = output * weight.to(output.dtype)[:, None]
    if bias is not None:
        output = output + bias.to(output.dtype)[:, None]
    return output.to(input.dtype), mean[:, :, 0], rstd[:, :, 0]


def _setup_forward(ctx, inputs, outputs):
    input, weight, bias, ctx.num_groups, _ = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, mean, rstd)


def _backward_forward(ctx, grad_output, _grad_mean, _grad_rstd):
    if grad_output is None:
        return (None,) * 5
    needs = ctx.needs_input_grad[:3]
    grads = group_norm_backward(grad_output, *ctx.saved_tensors, ctx.num_groups, *needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None, None


group_norm_forward = Kernel(
    "group_norm_forward(Tensor input, Tensor? weight, Tensor? bias, int num_groups, float eps) "
    "-> (Tensor output, Tensor mean, Tensor rstd)",
    module="group_norm",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
    autocast={"cuda": "float32"},
)
