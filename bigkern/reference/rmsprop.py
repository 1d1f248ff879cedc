"""rmsprop in NumPy: the definition, on lists of float64 arrays that it changes in place."""

from .array_module import array_module


def rmsprop_step(
    params,
    grads,
    square_avgs,
    grad_avgs,
    momentum_buffers,
    state_steps,
    master_params,
    grad_factor,
    found_inf,
    lr,
    alpha,
    eps,
    weight_decay,
    momentum,
    maximize,
    zero_grad,
):
    """See bigkern/ops/rmsprop.py for the formula."""
    xp = array_module(*params)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if found_inf is None or found_inf == 0:
            state_steps[i][...] += 1
            weight = master_params[i] if master_params else param
            g = grad * (1 if grad_factor is None else grad_factor)
            g = -g if maximize else g
            if weight_decay != 0:
                g = g + weight_decay * weight
            square_avgs[i][...] = alpha * square_avgs[i] + (1 - alpha) * g * g
            variance = square_avgs[i]
            if grad_avgs:
                grad_avgs[i] += (1 - alpha) * (g - grad_avgs[i])
                variance = variance - grad_avgs[i] ** 2
            update = g / (xp.sqrt(variance) + eps)
            if momentum_buffers:
                momentum_buffers[i][...] = momentum * momentum_buffers[i] + update
                update = momentum_buffers[i]
            weight -= lr * update
            param[...] = weight
        if zero_grad:
            grad[...] = 0
