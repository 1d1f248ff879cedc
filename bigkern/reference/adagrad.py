"""adagrad in NumPy: the definition, on lists of float64 arrays that it changes in place."""

from .array_module import array_module


def adagrad_step(
    params,
    grads,
    state_sums,
    state_steps,
    master_params,
    grad_factor,
    found_inf,
    lr,
    lr_decay,
    eps,
    weight_decay,
    maximize,
    zero_grad,
):
    """See bigkern/ops/adagrad.py for the formula."""
    xp = array_module(*params)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if found_inf is None or found_inf == 0:
            state_steps[i][...] += 1
            weight = master_params[i] if master_params else param
            g = grad * (1 if grad_factor is None else grad_factor)
            g = -g if maximize else g
            if weight_decay != 0:
                g = g + weight_decay * weight
            state_sums[i] += g * g
            weight -= lr / (1 + (state_steps[i] - 1) * lr_decay) * g / (xp.sqrt(state_sums[i]) + eps)
            param[...] = weight
        if zero_grad:
            grad[...] = 0
