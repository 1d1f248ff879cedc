"""adagrad as one kernel over all parameters; the formula stands in bigkern/ops/adagrad.py."""

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
def adagrad_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    grad_factor_ptr,
    found_inf_ptr,
    lr,
    lr_decay,
    eps,
    weight_decay,
    step,
    HAS_DECAY: tl.constexpr,
    STEPS_ON_DEVICE: tl.constexpr,
    STEP_DTYPE: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
    HAS_MASTER: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """STEPS_ON_DEVICE: the step comes from the table, not from the arguments."""
    STATE_DTYPE: tl.constexpr = tl.float32 if HAS_MASTER else DTYPE
    tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
    if STEPS_ON_DEVICE:
        step = load_step(table_ptr, STATE + 1, tensor, num_tensors, STEP_DTYPE)
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
                state_sum = load_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                )

                if HAS_DECAY:
                    grad += weight_decay * param
                state_sum += grad * grad
                rate = lr / (1.0 + (step - 1.0) * lr_decay)
                param -= rate * tl.div_rn(grad, tl.sqrt_rn(state_sum) + eps)

                store_parameter(
                    table_ptr, tensor, num_tensors, offsets, exists, param, HAS_MASTER, MASKED, DTYPE, ALIGNED
                )
                store_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, state_sum, MASKED, STATE_DTYPE, ALIGNED
                )
            if ZERO_GRAD:
                clear_gradient(table_ptr, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED, BLOCK)


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
    count_steps(state_steps, found_inf)
    steps = on_host(state_steps)
    launch_update(
        adagrad_kernel,
        (params, grads, master_params, state_sums),
        lambda step: (grad_factor, found_inf, lr, lr_decay, eps, weight_decay, 1.0 if step is None else step),
        steps=state_steps,
        keys=steps,
        HAS_DECAY=weight_decay != 0,
        STEPS_ON_DEVICE=steps is None,
        STEP_DTYPE=triton_dtype(state_steps[0]),
        MAXIMIZE=maximize,
        ZERO_GRAD=zero_grad,
        HAS_MASTER=bool(master_params),
        **COMPILE_OPTIONS,
    )
