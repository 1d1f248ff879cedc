"""grad_norm: the norm of a list of gradients taken as one vector, and the number that clips them; one reading pass.

    total_norm = norm of all elements / grad_scale
    grad_factor = min(max_norm / (total_norm + 1e-6), 1) / grad_scale

Multiplied by grad_factor, gradients are unscaled and clipped: the optimizers' ops do that while they update, and
`clip_grads_step` does it alone. Source: torch.nn.utils.clip_grad_norm_; Pascanu et al., "On the difficulty of training
recurrent neural networks" (2013). No gradient passes through it.
"""

import math

import torch

from ..multi_tensor import FLOATING
from ..registration import Kernel


def grad_norm(grads, max_norm=math.inf, norm_type=2.0, grad_scale=None):
    """The norm of `grads` together, and the factor that brings it to at most `max_norm`.

    Args:
        grads: list of floating tensors, at least one, of any shapes and layouts, on one device.
        max_norm: the largest norm wanted.
        norm_type: 2, or any number that torch.linalg.vector_norm takes, infinity for the largest magnitude.
        grad_scale: tensor of one element: the gradients are those of a loss that was multiplied by it. None: 1.

    Returns:
        (total_norm, grad_factor), tensors of shape [], float32 (float64 where a gradient is): the norm of the unscaled
        gradients, and what to multiply the gradients by. Both are NaN where a gradient is.

    Raises:
        TypeError: a gradient is not floating, or is sparse.
        ValueError: there is no gradient, or they are on several devices.
    """
    grads = list(grads)
    if not grads:
        raise ValueError("grad_norm: there must be at least one gradient")
    for grad in grads:
        if grad.dtype not in FLOATING:
            raise TypeError(f"grad_norm: grads must be floating, got {grad.dtype}")
        if grad.layout != torch.strided:
            raise TypeError(f"grad_norm: grads must be dense, got {grad.layout}")
        if grad.device != grads[0].device:
            raise ValueError(f"grad_norm: all grads must be on {grads[0].device}, got {grad.device}")
    return grad_norm_forward(grads, grad_scale, float(norm_type), float(max_norm))


# ---- grad_norm_forward -----------------------------------------------------------------------------------------------


def _norm_dtype(grads):
    return torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32


def _allocate_grad_norm(grads, grad_scale, norm_type, max_norm):
    dtype = _norm_dtype(grads)
    return grads[0].new_empty((), dtype=dtype), grads[0].new_empty((), dtype=dtype)


def _grad_norm_torch(grads, grad_scale, norm_type, max_norm):
    dtype = _norm_dtype(grads)
    norms = [torch.linalg.vector_norm(grad, norm_type, dtype=dtype) for grad in grads if grad.numel()]
    total_norm = (
        torch.linalg.vector_norm(torch.stack(norms), norm_type) if norms else grads[0].new_zeros((), dtype=dtype)
    )
    if grad_scale is not None:
        total_norm = total_norm / grad_scale.reshape(()).to(dtype)
    grad_factor = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
    return total_norm, grad_factor if grad_scale is None else grad_factor / grad_scale.reshape(()).to(dtype)


def _supports_norm(grads, grad_scale, norm_type, max_norm):
    return None if norm_type in (2.0, math.inf) else f"norm_type must be 2 or inf for a kernel, not {norm_type}"


def _gpu_supports_norm(grads, grad_scale, norm_type, max_norm):
    if _norm_dtype(grads) == torch.float64:
        return "float64 is left to PyTorch on a GPU"
    return _supports_norm(grads, grad_scale, norm_type, max_norm)


grad_norm_forward = Kernel(
    "grad_norm_forward(Tensor[] grads, Tensor? grad_scale, float norm_type, float max_norm) "
    "-> (Tensor total_norm, Tensor grad_factor)",
    module="grad_norm",
    allocate=_allocate_grad_norm,
    torch=_grad_norm_torch,
    supports={"cpu": _supports_norm, "triton": _gpu_supports_norm, "cuda": _gpu_supports_norm},
)


# ---- clip_grads_step -------------------------------------------------------------------------------------------------


def _clip_grads_torch(grads, grad_factor):
    for grad in grads:
        grad.mul_(grad_factor)


def _gpu_supports_clip(grads, grad_factor):
    return "float64 is left to PyTorch on a GPU" if _norm_dtype(grads) == torch.float64 else None


clip_grads_step = Kernel(
    "clip_grads_step(Tensor(a!)[] grads, Tensor grad_factor) -> ()",
    module="grad_norm",
    torch=_clip_grads_torch,
    supports={"cpu": None, "triton": _gpu_supports_clip, "cuda": _gpu_supports_clip},
)
