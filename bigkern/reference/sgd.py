"""sgd in NumPy: the definition, on lists of float64 arrays that it changes in place."""


def sgd_step(
    params,
    grads,
    momentum_buffers,
    master_params,
    grad_factor,
    found_inf,
    lr,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    maximize,
    first_step,
    zero_grad,
):
    """See bigkern/ops/sgd.py for the formula."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if found_inf is None or found_inf == 0:
            weight = master_params[i] if master_params else param
            g = grad * (1 if grad_factor is None else grad_factor)
            g = -g if maximize else g
            if weight_decay != 0:
                g = g + weight_decay * weight
            if momentum != 0:
                buffer = momentum_buffers[i]
                buffer[...] = g if first_step else momentum * buffer + (1 - dampening) * g
                g = g + momentum * buffer if nesterov else buffer
            weight -= lr * g
            param[...] = weight
        if zero_grad:
            grad[...] = 0
