"""adam in NumPy: the definition, on lists of float64 arrays that it changes in place."""

from .array_module import array_module


def adam_step(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    max_exp_avg_sqs,
    state_steps,
    master_params,
    grad_factor,
    found_inf,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    decoupled_weight_decay,
    maximize,
    zero_grad,
):
    """See bigkern/ops/adam.py for the formula."""
    xp = array_module(*params)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if found_inf is None or found_inf == 0:
            state_steps[i][...] += 1
            step = state_steps[i]
            weight = master_params[i] if master_params else param
            g = grad * (1 if grad_factor is None else grad_factor)
            g = -g if maximize else g
            if decoupled_weight_decay:
                weight *= 1 - lr * weight_decay
            elif weight_decay != 0:
                g = g + weight_decay * weight
            # beta1 * exp_avg + (1 - beta1) * g, in the form that gives NaN where PyTorch does
            exp_avgs[i] += (1 - beta1) * (g - exp_avgs[i])
            exp_avg_sqs[i][...] = beta2 * exp_avg_sqs[i] + (1 - beta2) * g * g
            second = exp_avg_sqs[i]
            if max_exp_avg_sqs:
                max_exp_avg_sqs[i][...] = xp.maximum(max_exp_avg_sqs[i], second)
                second = max_exp_avg_sqs[i]
            denominator = xp.sqrt(second) / xp.sqrt(1 - beta2**step) + eps
            weight -= lr / (1 - beta1**step) * exp_avgs[i] / denominator
            param[...] = weight
        if zero_grad:
            grad[...] = 0
