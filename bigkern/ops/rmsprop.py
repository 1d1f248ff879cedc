"""rmsprop: RMSprop, plain or centered, with or without momentum, over a list of parameters, in one pass over memory.

    g = grad * grad_factor (negated to maximize) + weight_decay * param
    square_avg = alpha * square_avg + (1 - alpha) * g * g
    centered: grad_avg = alpha * grad_avg + (1 - alpha) * g
    update = g / (sqrt(square_avg - grad_avg^2) + eps)
    momentum: buffer = momentum * buffer + update, which then stands for update
    param -= lr * update

Sources: the formula of torch.optim.RMSprop; Hinton, "Neural Networks for Machine Learning", lecture 6 (2012); Graves,
"Generating Sequences With Recurrent Neural Networks" (2013). No gradient passes through it.
"""

from ..multi_tensor import check_lists, check_steps, count_steps, leaves_float64_to_torch, update_composed
from ..registration import Kernel


def rmsprop(
    params,
    grads,
    square_avgs,
    grad_avgs,
    momentum_buffers,
    state_steps,
    *,
    lr,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    maximize=False,
    master_params=(),
    grad_factor=None,
    found_inf=None,
    zero_grad=False,
):
    """One step of RMSprop on every parameter, in place; `bigkern.optim.RMSprop` is the optimizer around it.

    Args:
        params, grads: lists of floating tensors, pairwise of one shape and dtype; layouts may differ.
        square_avgs: running averages of the gradients' squares.
        grad_avgs: running averages of the gradients, for the centered variant; empty without it.
        momentum_buffers: one for each parameter; empty where momentum is 0.
        state_steps: one float tensor of one element for each parameter: how many steps were taken.
        lr, alpha, eps, weight_decay, momentum, maximize: as in torch.optim.RMSprop.
        master_params: float32 copies of float16 or bfloat16 params, which are updated in their place; the state is
            then float32.
        grad_factor: tensor of one element that multiplies the gradients first, or None.
        found_inf: tensor of one element; where it is not 0 the step is skipped. Or None.
        zero_grad: leaves the gradients zero.

    Raises:
        TypeError, ValueError: lists that do not belong together.
    """
    params, grads, square_avgs, grad_avgs = list(params), list(grads), list(square_avgs), list(grad_avgs)
    momentum_buffers, state_steps, master_params = list(momentum_buffers), list(state_steps), list(master_params)
    if not params:
        return
    if not square_avgs:
        raise ValueError("rmsprop: square_avgs must not be empty")
    if momentum > 0 and not momentum_buffers:
        raise ValueError(f"rmsprop: momentum {momentum} needs momentum_buffers")
    if momentum == 0:
        momentum_buffers = []
    states = {"square_avgs": square_avgs, "grad_avgs": grad_avgs, "momentum_buffers": momentum_buffers}
    check_lists("rmsprop", params, grads, master_params, **states)
    check_steps("rmsprop", params, state_steps, found_inf)
    rmsprop_step(
        params, grads, square_avgs, grad_avgs, momentum_buffers, state_steps, master_params, grad_factor, found_inf,
        float(lr), float(alpha), float(eps), float(weight_decay), float(momentum), maximize, zero_grad,
    )  # fmt: skip


def _rmsprop_torch(
    params, grads, square_avgs, grad_avgs, momentum_buffers, state_steps, master_params, grad_factor, found_inf, lr,
    alpha, eps, weight_decay, momentum, maximize, zero_grad,
):  # fmt: skip
    count_steps(state_steps, found_inf)

    def update(i, param, grad, square_avg, *others):
        others = list(others)
        grad = grad + weight_decay * param if weight_decay else grad
        variance = square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        if grad_avgs:
            grad_avg = others.pop(0).lerp_(grad, 1 - alpha)
            variance = variance - grad_avg * grad_avg
        step = grad / (variance.sqrt() + eps)
        if momentum_buffers:
            step = others.pop(0).mul_(momentum).add_(step)
        param.sub_(step, alpha=lr)

    states = [square_avgs, grad_avgs, momentum_buffers]
    update_composed(params, grads, states, master_params, grad_factor, found_inf, maximize, zero_grad, update)


rmsprop_step = Kernel(
    "rmsprop_step(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] square_avgs, Tensor(d!)[] grad_avgs, "
    "Tensor(e!)[] momentum_buffers, Tensor(f!)[] state_steps, Tensor(g!)[] master_params, Tensor? grad_factor, "
    "Tensor? found_inf, float lr, float alpha, float eps, float weight_decay, float momentum, bool maximize, "
    "bool zero_grad) -> ()",
    module="rmsprop",
    torch=_rmsprop_torch,
    supports={"cpu": None, "triton": leaves_float64_to_torch},
)
