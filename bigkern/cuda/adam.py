"""adam as one kernel over all parameters; the formula stands in bigkern/ops/adam.py."""

import math

import torch

from ..multi_tensor import count_steps
from ..tensor_lists import on_host
from .multi_tensor import launch_update, scalar

FROM_HOST, FLOATS, DOUBLES = range(3)  # csrc/cuda/adam.cu: steps


def bias_corrections(step, beta1, beta2):
    """(1 - beta1^step, sqrt(1 - beta2^step)); ones where the step count is on the device and None here."""
    return (1.0, 1.0) if step is None else (1 - beta1**step, math.sqrt(1 - beta2**step))


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
    count_steps(state_steps, found_inf)
    steps = on_host(state_steps)
    on_device = DOUBLES if state_steps[0].dtype == torch.float64 else FLOATS
    source = on_device if steps is None else FROM_HOST
    flags = (source, bool(max_exp_avg_sqs), 1 - beta1 < 0.5, decoupled_weight_decay, maximize, zero_grad)
    factors = (lr, weight_decay, eps, 1 - beta1, beta2, 1 - beta2)
    logs = [math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2)]
    launch_update(
        "adam",
        "adam_kernel",
        (params, grads, master_params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs),
        lambda step: (
            (scalar(grad_factor), scalar(found_inf)),
            (*flags, *factors, *bias_corrections(step, beta1, beta2), *logs),
        ),
        steps=state_steps if steps is None else (),
        keys=steps,
    )
