"""batch_norm_act: batch normalization, residual addition and activation in one pass over memory.

    mean, var = of each channel: of the batch when training, else the running ones
    output    = act((input - mean) / sqrt(var + eps) * weight + bias + residual)

The variance is taken around the mean, in float32 or better. What the forward keeps for the backward is `input`, two
numbers per channel and, with a ReLU, `output`, whose zeros say where no gradient passes. With n the normalized input
and g the gradient that passed the activation, over all `count` elements of a channel,

    grad_bias = sum of g        grad_weight = sum of g * n        grad_residual = g
    grad_input = weight * rstd * (g - grad_bias / count - n * grad_weight / count)      (training)
    grad_input = weight * rstd * g                                                      (inference)

Sums run in an order that depends on the shape alone. Running statistics are updated in place by PyTorch's operators,
from the mean and variance that the kernel returns: the kernel itself changes nothing.
Source: Ioffe, Szegedy, "Batch Normalization" (2015).
"""

import torch
import torch.nn.functional as F

from ..channel_arguments import FLOATING, as_channels, check_channel_parameter, empty_like_channels
from ..norm_arguments import one_dtype, statistics_dtype, triton_supports
from ..registration import Kernel, too_small

ACTIVATIONS = ("none", "relu")
# Below this many elements, what a call costs before and after its kernel outweighs what the kernel saves.
SMALL = 1 << 17
SMALL_REASON = f"PyTorch's own functions measured faster below {SMALL} elements"


def batch_norm_act(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    residual=None,
    activation="none",
):
    """act(batch_norm(input) + residual), with `torch.nn.functional.batch_norm`'s arguments and errors.

    Args:
        input: floating tensor [batch, channels, ...] of 2 to 5 dimensions, contiguous or channels_last for speed.
        running_mean, running_var: floating [channels]; what inference normalizes with, and what training updates in
            place: running = (1 - momentum) * running + momentum * batch, with the unbiased variance. When training,
            both may be None.
        weight, bias: floating [channels], or None.
        training: normalize with the statistics of the batch.
        momentum: the share of the new statistics.
        eps: added to the variance.
        residual: a tensor of input's shape and dtype that is added before the activation, or None.
        activation: "none" or "relu".

    Returns:
        A tensor of input's shape and dtype, channels_last if input is, else contiguous. Differentiable in input,
        weight, bias and residual, any number of times.

    Raises:
        ValueError: a channel has a single value when training, eps is not positive, only one of the running statistics
            is there, activation is unknown, or residual does not match input.
        RuntimeError: inference lacks running statistics; sizes, dtypes or devices do not go together.
    """
    _check(input, running_mean, running_var, weight, bias, training, eps, residual, activation)
    if (
        input.numel() < SMALL
        and one_dtype(input, running_mean, running_var, weight, bias)
        and too_small("batch_norm_act", SMALL_REASON, input, running_mean, running_var, weight, bias, residual)
    ):
        output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        output = output if residual is None else output + residual
        return F.relu(output) if activation == "relu" else output
    statistics = (None, None) if training else (running_mean, running_var)
    output, mean, var = batch_norm_act_forward(
        as_channels(input),
        weight,
        bias,
        None if residual is None else as_channels(residual),
        *statistics,
        bool(training),
        float(eps),
        activation,
    )
    if training and running_mean is not None and input.numel():
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return output.view(input.shape)


def _check(input, running_mean, running_var, weight, bias, training, eps, residual, activation):
    if input.dtype not in FLOATING:
        raise RuntimeError(f"batch_norm_act: input must be floating, got {input.dtype}")
    if not 2 <= input.ndim <= 5:
        raise RuntimeError(f"batch_norm_act: input must have 2 to 5 dimensions, got {input.ndim}")
    channels = input.shape[1]
    if training and input.shape[0] * input.shape[2:].numel() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    if training and eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if (running_mean is None) != (running_var is None) and training:
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    for name, parameter in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if parameter is not None:
            check_channel_parameter("batch_norm_act", name, parameter, input, channels)
        elif not training and name.startswith("running"):
            raise RuntimeError(f"{name} must be defined in evaluation mode")
    if activation not in ACTIVATIONS:
        raise ValueError(f"batch_norm_act: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if residual is None:
        return
    if residual.shape != input.shape:
        raise ValueError(f"batch_norm_act: residual has shape {tuple(residual.shape)}, input has {tuple(input.shape)}")
    if residual.dtype != input.dtype or residual.device != input.device:
        raise ValueError(
            f"batch_norm_act: residual is {residual.dtype} on {residual.device}, input {input.dtype} on {input.device}"
        )


def _per_channel(values):
    return values[:, None]


def _centered(x):
    """(x - mean, mean [channels]); the second step takes away what rounding left of a large mean."""
    mean = x.mean((0, 2), keepdim=True)
    rest = (x - mean).mean((0, 2), keepdim=True)
    return (x - mean) - rest, (mean + rest).view(-1)


# ---- batch_norm_act_backward -----------------------------------------------------------------------------------------
# Defined before the forward, whose gradient calls it.


def _allocate_backward(
    grad_output,
    input,
    weight,
    bias,
    mean,
    var,
    output,
    training,
    eps,
    needs_input,
    needs_weight,
    needs_bias,
    needs_residual,
):
    return (
        empty_like_channels(input) if needs_input else input.new_empty(0),
        weight.new_empty(weight.shape) if needs_weight else input.new_empty(0),
        bias.new_empty(bias.shape) if needs_bias else input.new_empty(0),
        empty_like_channels(input) if needs_residual else input.new_empty(0),
    )


def _backward_torch(
    grad_output,
    input,
    weight,
    bias,
    mean,
    var,
    output,
    training,
    eps,
    needs_input,
    needs_weight,
    needs_bias,
    needs_residual,
):
    """The kernels' function in PyTorch's operators, differentiable in grad_output, input and weight."""
    x, grad = input.to(mean.dtype), grad_output.to(mean.dtype)
    if output is not None:
        grad = torch.where(output <= 0, 0.0, grad)
    if training:
        # The forward's statistics were rounded, and their derivative is wanted.
        centered = _centered(x)[0]
        rstd = (centered.square().mean((0, 2), keepdim=True) + eps).rsqrt()
    else:
        centered, rstd = x - _per_channel(mean), _per_channel((var + eps).rsqrt())
    normalized = centered * rstd
    scaled = grad if weight is None else grad * _per_channel(weight.to(x.dtype))
    grad_input = scaled * rstd
    if training:
        slope = (scaled * normalized).mean((0, 2), keepdim=True)
        grad_input = rstd * (scaled - scaled.mean((0, 2), keepdim=True) - normalized * slope)
    return (
        grad_input.to(input.dtype) if needs_input else input.new_empty(0),
        (grad * normalized).sum((0, 2)).to(weight.dtype) if needs_weight else input.new_empty(0),
        grad.sum((0, 2)).to(bias.dtype) if needs_bias else input.new_empty(0),
        grad.to(input.dtype) if needs_residual else input.new_empty(0),
    )


batch_norm_act_backward = Kernel(
    "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
    "Tensor? output, bool training, float eps, bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad, "
    "bool needs_residual_grad) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    module="batch_norm_act",
    allocate=_allocate_backward,
    torch=_backward_torch,
    supports={"cpu": None, "triton": lambda grad_output, input, *_: triton_supports(input)},
    recompute=True,
)


# ---- batch_norm_act_forward ------------------------------------------------------------------------------------------


def _allocate_forward(input, weight, bias, residual, running_mean, running_var, training, eps, activation):
    statistics = statistics_dtype(input.dtype)
    return (
        empty_like_channels(input),
        input.new_empty(input.shape[1], dtype=statistics),
        input.new_empty(input.shape[1], dtype=statistics),
    )


def _forward_torch(input, weight, bias, residual, running_mean, running_var, training, eps, activation):
    x = input.to(statistics_dtype(input.dtype))
    if training:
        centered, mean = _centered(x)
        var = centered.square().mean((0, 2))
    else:
        mean, var = running_mean.to(x.dtype, copy=True), running_var.to(x.dtype, copy=True)
        centered = x - _per_channel(mean)
    output = centered * _per_channel((var + eps).rsqrt())
    if weight is not None:
        output = output * _per_channel(weight.to(x.dtype))
    if bias is not None:
        output = output + _per_channel(bias.to(x.dtype))
    if residual is not None:
        output = output + residual
    if activation == "relu":
        output = output.relu()
    return output.to(input.dtype), mean, var


def _setup_forward(ctx, inputs, outputs):
    input, weight, bias, _, _, _, ctx.training, ctx.eps, activation = inputs
    output, mean, var = outputs
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.has_activation = activation != "none"
    ctx.save_for_backward(input, weight, bias, mean, var, output if ctx.has_activation else None)


def _backward_forward(ctx, grad_output, _grad_mean, _grad_var):
    if grad_output is None:
        return (None,) * 9
    needs = list(ctx.needs_input_grad[:4])
    # Without an activation the residual's gradient is what came in.
    passes_through = needs[3] and not ctx.has_activation
    needs[3] = needs[3] and ctx.has_activation
    grads = (None,) * 4
    if any(needs):
        grads = batch_norm_act_backward(grad_output, *ctx.saved_tensors, ctx.training, ctx.eps, *needs)
    grads = [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
    if passes_through:
        grads[3] = grad_output
    return *grads, *(None,) * 5


batch_norm_act_forward = Kernel(
    "batch_norm_act_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, "
    "Tensor? running_var, bool training, float eps, str activation) -> (Tensor output, Tensor mean, Tensor var)",
    module="batch_norm_act",
    allocate=_allocate_forward,
    torch=_forward_torch,
    supports={"cpu": None, "triton": lambda input, *_: triton_supports(input)},
    setup_context=_setup_forward,
    backward=_backward_forward,
)
