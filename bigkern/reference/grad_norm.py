"""grad_norm in NumPy: the definition, on lists of float64 arrays."""

from .array_module import array_module


def grad_norm_forward(grads, grad_scale, norm_type, max_norm):
    """(total_norm, grad_factor); see bigkern/ops/grad_norm.py."""
    xp = array_module(*grads)
    scale = 1.0 if grad_scale is None else grad_scale.reshape(())
    elements = xp.concatenate([grad.reshape(-1) for grad in grads])
    total_norm = xp.linalg.norm(elements, norm_type) / scale if elements.size else xp.zeros(())
    return total_norm, xp.minimum(max_norm / (total_norm + 1e-6), 1.0) / scale


def clip_grads_step(grads, grad_factor):
    """Multiplies every gradient by grad_factor, in place."""
    for grad in grads:
        grad *= grad_factor
