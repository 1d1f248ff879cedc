"""rmsprop as one kernel over all parameters; the formula stands in bigkern/ops/rmsprop.py."""

import triton
import triton.language as tl

from bigkern.multi_tensor import count_steps

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
def rmsprop_kernel(
    table_ptr,
    plan_ptr,
    num_tensors,
    grad_factor_ptr,
    found_inf_ptr,
    lr,
    alpha,
    one_minus_alpha,
    eps,
    weight_decay,
    momentum,
    CENTERED: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    MAXIMIZE: tl.constexpr,
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
                square_avg = load_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                )

                if HAS_DECAY:
                    grad += weight_decay * param
                square_avg = alpha * square_avg + one_minus_alpha * grad * grad
                store_operand(
                    table_ptr, STATE, tensor, num_tensors, offsets, exists, square_avg, MASKED, STATE_DTYPE, ALIGNED
                )
                variance = square_avg
                if CENTERED:
                    grad_avg = load_operand(
                        table_ptr, STATE + 1, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                    )
                    grad_avg += one_minus_alpha * (grad - grad_avg)
                    store_operand(
                        table_ptr,
                        STATE + 1,
                        tensor,
                        num_tensors,
                        offsets,
                        exists,
                        grad_avg,
                        MASKED,
                        STATE_DTYPE,
                        ALIGNED,
                    )
                    variance -= grad_avg * grad_avg
                update = tl.div_rn(grad, tl.sqrt_rn(variance) + eps)
                if HAS_MOMENTUM:
                    buffer = load_operand(
                        table_ptr, STATE + 2, tensor, num_tensors, offsets, exists, MASKED, STATE_DTYPE, ALIGNED
                    )
                    update += momentum * buffer
                    store_operand(
                        table_ptr, STATE + 2, tensor, num_tensors, offsets, exists, update, MASKED, STATE_DTYPE, ALIGNED
                    )
                param -= lr * update

                store_parameter(
                    table_ptr, tensor, num_tensors, offsets, exists, param, HAS_MASTER, MASKED, DTYPE, ALIGNED
                )
            if ZERO_GRAD:
                clear_gradient(table_ptr, tensor, num_tensors, offsets, exists, MASKED, DTYPE, ALIGNED, BLOCK)


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
    count_steps(state_steps, found_inf)
    scalars = (grad_factor, found_inf, lr, alpha, 1 - alpha, eps, weight_decay, momentum)
    launch_update(
        rmsprop_kernel,
        (params, grads, master_params, square_avgs, grad_avgs, momentum_buffers),
        lambda key: scalars,
        CENTERED=bool(grad_avgs),
        HAS_MOMENTUM=bool(momentum_buffers),
        HAS_DECAY=weight_decay != 0,
        MAXIMIZE=maximize,
        ZERO_GRAD=zero_grad,
        HAS_MASTER=bool(master_params),
        **COMPILE_OPTIONS,
    )
