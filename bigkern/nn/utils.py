"""Functions with the names, arguments and errors of torch.nn.utils, and the folding of batch norm."""

import types
import warnings

import torch

from ..ops.grad_norm import clip_grads_step, grad_norm
from .conv import Conv2dAct


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """torch.nn.utils.clip_grad_norm_: scales the gradients in place so that their norm together is at most max_norm.

    An optimizer of bigkern.optim with max_grad_norm does the same inside its step, without a pass of its own.

    Args:
        parameters: a tensor, or tensors, that may have gradients; on one device.
        max_norm: the largest norm wanted.
        norm_type: 2, infinity, or any number that torch.linalg.vector_norm takes.
        error_if_nonfinite: raise where the norm is NaN or infinite; waits for a GPU.
        foreach: accepted, and without effect: one kernel reads all gradients, one scales them.

    Returns:
        The norm before clipping, a tensor of shape [].

    Raises:
        RuntimeError: the norm is not finite and error_if_nonfinite is set.
        TypeError, ValueError: as `bigkern.grad_norm`.
    """
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    else:
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and not parameters:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norm_type = float(norm_type)
    total_norm, grad_factor = grad_norm(grads, max_norm, norm_type)
    if error_if_nonfinite and not total_norm.isfinite():
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    clip_grads_step(grads, grad_factor)
    # torch.nn.utils stacks one norm of each gradient, in that gradient's dtype.
    dtype = grads[0].dtype
    for grad in grads:
        dtype = torch.promote_types(dtype, grad.dtype)
    return total_norm.to(dtype)


def fuse_conv_bn(conv, bn, activation="none"):
    """Convolution, batch norm at inference and activation as one module, which makes one call.

    The running statistics are a scale and a shift of each channel, and so can be folded into weight and bias:
    weight * s and (bias - running_mean) * s + bn.bias, with s = bn.weight / sqrt(running_var + eps). This is computed
    in float64 and rounded once. Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3.2.

    Args:
        conv: a torch.nn.Conv2d in eval mode.
        bn: the torch.nn.BatchNorm2d that follows it, in eval mode, with running statistics.
        activation: "none", or "relu" for a ReLU after the batch norm.

    Returns:
        A new `bigkern.nn.Conv2dAct`; conv and bn are left as they are.

    Raises:
        TypeError: conv is no torch.nn.Conv2d or bn no torch.nn.BatchNorm2d.
        ValueError: one of them is in training mode, bn has no running statistics, or the channels differ.
    """
    if not isinstance(conv, torch.nn.Conv2d) or not isinstance(bn, torch.nn.BatchNorm2d):
        raise TypeError(
            f"fuse_conv_bn: expected a Conv2d and a BatchNorm2d, got {type(conv).__name__} and {type(bn).__name__}"
        )
    if conv.training or bn.training:
        raise ValueError("fuse_conv_bn: folding holds at inference only: call eval() on both modules first")
    if bn.running_mean is None:
        raise ValueError("fuse_conv_bn: the batch norm keeps no running statistics")
    if bn.num_features != conv.out_channels:
        raise ValueError(f"fuse_conv_bn: {conv.out_channels} channels leave conv, bn takes {bn.num_features}")
    fused = Conv2dAct(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        activation=activation,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        scale = (bn.running_var.double() + bn.eps).rsqrt()
        if bn.weight is not None:
            scale = scale * bn.weight.double()
        shift = -bn.running_mean.double() if conv.bias is None else conv.bias.double() - bn.running_mean.double()
        shift = shift * scale if bn.bias is None else shift * scale + bn.bias.double()
        fused.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        fused.bias.copy_(shift)
        fused.weight.data = fused.weight.contiguous(memory_format=_format_of(conv.weight))
    return fused.eval()


def _format_of(weight):
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
