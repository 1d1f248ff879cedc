"""Functions with the names, arguments and errors of torch.nn.utils."""

import types
import warnings

import torch

from ..ops.grad_norm import clip_grads_step, grad_norm


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
