"""adam as one kernel over all parameters; the formula stands in bigkern/ops/adam.py."""

import math

import triton
import triton.language as tl

from bigkern.multi_tensor import count_steps
from bigkern.tensor_lists import on_host

from .common import COMPILE_OPTIONS
from .multi_tensor import (
    STATE,
    block_of,
    clear_gradient,
    is_taken,
    launch_update,
    load_gradient,
    load_operand,
    load_parameter,
    load_step,
    store_operand,
    store_parameter,
    triton_dtype,
)


@triton.jit
def one_minus_exp(x):
    """1 - exp(x) for x <= 0, to fp32's precision also where exp(x) is close to 1"""
    series = x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040))))))
    return tl.where(x > -0.3, -series, 1.0 - tl.exp(x))


@triton.jit
def adam_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    grad_factor_ptr,
    found_inf_ptr,
    lr,
    weight_decay,
    eps,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    correction1,
    correction2_sqrt,
    log_beta1,
    log_beta2,
    NEAR_START: tl.constexpr,
    AMSGRAD: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    STEPS_ON_DEVICE: tl.constexpr,
    STEP_DTYPE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
    HAS_MASTER: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NEAR_START: beta1 > 1/2. STEPS_ON_DEVICE: the corrections come from the step counts in the table, not from the
    arguments."""
    STATE_DTYPE: tl.constexpr = tl.float32 if HAS_MASTER else DTYPE
    tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
    if STEPS_ON_DEVICE:
        step = load_step(table_ptr, STATE + 3, tensor, num_tensors, STEP_DTYPE)
        correction1 = one_minus_exp(step * log_beta1)
        correction2_sqrt = tl.sqrt_rn(one_minus_exp(step * log_beta2))
    taken = is_taken(found_inf_ptr)
    for MASKED in tl.static_range(2):
        if is_last == MASKED:
            if taken:
                grad = load_gradient(
                    table_ptr, tensor, num_tensors, offsets, exists, grad_factor_ptr, MAXIMIZE, MASKED, DTYPE, ALIGNED
                )
                param = load_parameter(
                    table_ptr, tensor, num_tensors, offsets, exists, HAS_MASTER, MASKED, DTYPE, ALIGNED
                )
                exp_avg = load_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                )
                exp_avg_sq = load_operand(
                    table_ptr, STATE + 1, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                )

                if HAS_DECAY:
                    if DECOUPLED:
                        param = param * (1.0 - lr * weight_decay)
                    else:
                        grad += weight_decay * param
                if NEAR_START:
                    exp_avg += one_minus_beta1 * (grad - exp_avg)
                else:
                    exp_avg = grad - (1.0 - one_minus_beta1) * (grad - exp_avg)
                exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
                second = exp_avg_sq
                if AMSGRAD:
                    largest = load_operand(
                        table_ptr, STATE + 2, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                    )
                    second = tl.maximum(largest, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
                    store_operand(
                        table_ptr, STATE + 2, tensor, num_tensors, offsets, exists, second, MASKED, STATE_DTYPE, ALIGNED
                    )
                denominator = tl.div_rn(tl.sqrt_rn(second), correction2_sqrt) + eps
                param -= lr / correction1 * tl.div_rn(exp_avg, denominator)

                store_parameter(
                    table_ptr, tensor, num_tensors, offsets, exists, param, HAS_MASTER, MASKED, DTYPE, ALIGNED
                )
                store_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, exp_avg, MASKED, STATE_DTYPE, ALIGNED
                )
                store_operand(
                    table_ptr, STATE + 1, tensor, num_tensors, offsets, exists, exp_avg_sq, MASKED, STATE_DTYPE, ALIGNED
                )
            if ZERO_GRAD:
                clear_gradient(table_ptr, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED, BLOCK)


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
    scalars = (grad_factor, found_inf, lr, weight_decay, eps, 1 - beta1, beta2, 1 - beta2)
    logs = [math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2)]
    launch_update(
        adam_kernel,
        (params, grads, master_params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs),
        lambda step: (*scalars, *bias_corrections(step, beta1, beta2), *logs),
        steps=state_steps,
        keys=steps,
        NEAR_START=1 - beta1 < 0.5,
        AMSGRAD=bool(max_exp_avg_sqs),
        HAS_DECAY=weight_decay != 0,
        DECOUPLED=decoupled_weight_decay,
        STEPS_ON_DEVICE=steps is None,
        STEP_DTYPE=triton_dtype(state_steps[0]),
        MAXIMIZE=maximize,
        ZERO_GRAD=zero_grad,
        HAS_MASTER=bool(master_params),
        **COMPILE_OPTIONS,
    )
