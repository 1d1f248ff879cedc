"""sgd: stochastic gradient descent over a list of parameters, in one pass over memory.

    g = grad * grad_factor (negated to maximize) + weight_decay * param
    buffer = g in its first step, else momentum * buffer + (1 - dampening) * g
    param -= lr * (g + momentum * buffer if nesterov, else buffer)          (without momentum: lr * g)

Source: the formula of torch.optim.SGD; Sutskever et al., "On the importance of initialization and momentum in deep
learning" (2013). No gradient passes through it.
"""

from ..multi_tensor import check_lists, leaves_float64_to_torch, update_composed
from ..registration import Kernel


def sgd(
    params,
    grads,
    momentum_buffers,
    *,
    lr,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    maximize=False,
    first_step=False,
    master_params=(),
    grad_factor=None,
    found_inf=None,
    zero_grad=False,
):
    """One step of SGD on every parameter, in place; `bigkern.optim.SGD` is the optimizer around it.

    Args:
        params, grads: lists of floating tensors, pairwise of one shape and dtype; layouts may differ.
        momentum_buffers: one for each parameter; empty where momentum is 0.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD.
        first_step: the buffers hold nothing yet, and start as the gradient.
        master_params: float32 copies of float16 or bfloat16 params, which are updated in their place; the
            momentum_buffers are then float32.
        grad_factor: tensor of one element that multiplies the gradients first, or None.
        found_inf: tensor of one element; where it is not 0 the step is skipped. Or None.
        zero_grad: leaves the gradients zero.

    Raises:
        TypeError, ValueError: lists that do not belong together.
    """
    params, grads, momentum_buffers = list(params), list(grads), list(momentum_buffers)
    master_params = list(master_params)
    if not params:
        return
    check_lists("sgd", params, grads, master_params, momentum_buffers=momentum_buffers)
    if momentum != 0 and not momentum_buffers:
        raise ValueError(f"sgd: momentum {momentum} needs momentum_buffers")
    if momentum == 0:
        momentum_buffers = []
    sgd_step(
        params, grads, momentum_buffers, master_params, grad_factor, found_inf, float(lr), float(momentum),
        float(dampening), float(weight_decay), nesterov, maximize, first_step, zero_grad,
    )  # fmt: skip


def _sgd_torch(
    params, grads, momentum_buffers, master_params, grad_factor, found_inf, lr, momentum, dampening, weight_decay,
    nesterov, maximize, first_step, zero_grad,
):  # fmt: skip
    def update(i, param, grad, buffer=None):
        grad = grad + weight_decay * param if weight_decay else grad
        if buffer is not None:
            buffer.copy_(grad) if first_step else buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
            grad = grad + momentum * buffer if nesterov else buffer
        param.sub_(grad, alpha=lr)

    frame = (master_params, grad_factor, found_inf, maximize, zero_grad)
    update_composed(params, grads, [momentum_buffers], *frame, update)


sgd_step = Kernel(
    "sgd_step(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, Tensor(d!)[] master_params, "
    "Tensor? grad_factor, Tensor? found_inf, float lr, float momentum, float dampening, float weight_decay, "
    "bool nesterov, bool maximize, bool first_step, bool zero_grad) -> ()",
    module="sgd",
    torch=_sgd_torch,
    supports={"cpu": None, "triton": leaves_float64_to_torch},
)
