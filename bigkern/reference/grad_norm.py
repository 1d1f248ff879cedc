"""grad_norm in NumPy: the definition, on lists of float64 arrays."""

import numpy as np


def grad_norm_forward(grads, grad_scale, norm_type, max_norm):
    """(total_norm, grad_factor); see bigkern/ops/grad_norm.py."""
    scale = 1.0 if grad_scale is None else grad_scale.reshape(())
    elements = np.concatenate([grad.reshape(-1) for grad in grads])
    total_norm = np.linalg.norm(elements, norm_type) / scale if elements.size else np.float64(0)
    return total_norm, np.minimum(max_norm / (total_norm + 1e-6), 1.0) / scale


def clip_grads_step(grads, grad_factor):
    """Multiplies every gradient by grad_factor, in place."""
    for grad in grads:
        grad *= grad_factor
