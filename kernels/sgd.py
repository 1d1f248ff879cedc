"""sgd as one kernel over all parameters; the formula stands in bigkern/ops/sgd.py."""

import triton
import triton.language as tl

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
    store_operand,
    store_parameter,
)


@triton.jit
def sgd_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    grad_factor_ptr,
    found_inf_ptr,
    lr,
    momentum,
    one_minus_dampening,
    weight_decay,
    HAS_MOMENTUM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FIRST_STEP: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
    HAS_MASTER: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    STATE_DTYPE: tl.constexpr = tl.float32 if HAS_MASTER else DTYPE
    tensor, offsets, exists, is_last = block_of(plan_ptr, BLOCK)
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

                if HAS_DECAY:
                    grad += weight_decay * param
                if HAS_MOMENTUM:
                    buffer = grad
                    if not FIRST_STEP:
                        buffer = load_operand(
                            table_ptr, STATE, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                        )
                        buffer = momentum * buffer + one_minus_dampening * grad
                    store_operand(
                        table_ptr, STATE, tensor, num_tensors, offsets, exists, buffer, MASKED, STATE_DTYPE, ALIGNED
                    )
                    grad = grad + momentum * buffer if NESTEROV else buffer
                param -= lr * grad

                store_parameter(
                    table_ptr, tensor, num_tensors, offsets, exists, param, HAS_MASTER, MASKED, DTYPE, ALIGNED
                )
            if ZERO_GRAD:
                clear_gradient(table_ptr, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED, BLOCK)


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
    scalars = (grad_factor, found_inf, float(lr), float(momentum), float(1 - dampening), float(weight_decay))
    launch_update(
        sgd_kernel,
        (params, grads, master_params, momentum_buffers),
        lambda key: scalars,
        HAS_MOMENTUM=bool(momentum_buffers),
        HAS_DECAY=weight_decay != 0,
        NESTEROV=nesterov,
        MAXIMIZE=maximize,
        FIRST_STEP=first_step,
        ZERO_GRAD=zero_grad,
        HAS_MASTER=bool(master_params),
        **COMPILE_OPTIONS,
    )
