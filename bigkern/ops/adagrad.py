"""adagrad: Adagrad over a list of parameters, in one pass over memory.

    g = grad * grad_factor (negated to maximize) + weight_decay * param
    state_sum += g * g
    param -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(state_sum) + eps)

Sources: the formula of torch.optim.Adagrad; Duchi et al., "Adaptive Subgradient Methods for Online Learning and
Stochastic Optimization" (2011). No gradient passes through it.
"""

from ..multi_tensor import check_lists, check_steps, count_steps, leaves_float64_to_torch, update_composed
from ..registration import Kernel


def adagrad(
    params,
    grads,
    state_sums,
    state_steps,
    *,
    lr,
    lr_decay=0.0,
    eps=1e-10,
    weight_decay=0.0,
    maximize=False,
    master_params=(),
    grad_factor=None,
    found_inf=None,
    zero_grad=False,
):
    """One step of Adagrad on every parameter, in place; `bigkern.optim.Adagrad` is the optimizer around it.

    Args:
        params, grads: lists of floating tensors, pairwise of one shape and dtype; layouts may differ.
        state_sums: sums of the gradients' squares.
        state_steps: one float tensor of one element for each parameter: how many steps were taken. On the CPU, or on
            the device of params: then a step reads nothing back from it.
        lr, lr_decay, eps, weight_decay, maximize: as in torch.optim.Adagrad.
        master_params: float32 copies of float16 or bfloat16 params, which are updated in their place; the state is
            then float32.
        grad_factor: tensor of one element that multiplies the gradients first, or None.
        found_inf: tensor of one element; where it is not 0 the step is skipped. Or None.
        zero_grad: leaves the gradients zero.

    Raises:
        TypeError, ValueError: lists that do not belong together.
    """
    params, grads, state_sums = list(params), list(grads), list(state_sums)
    state_steps, master_params = list(state_steps), list(master_params)
    if not params:
        return
    if not state_sums:
        raise ValueError("adagrad: state_sums must not be empty")
    check_lists("adagrad", params, grads, master_params, state_sums=state_sums)
    check_steps("adagrad", params, state_steps, found_inf)
    adagrad_step(
        params, grads, state_sums, state_steps, master_params, grad_factor, found_inf, float(lr), float(lr_decay),
        float(eps), float(weight_decay), maximize, zero_grad,
    )  # fmt: skip


def _adagrad_torch(
    params, grads, state_sums, state_steps, master_params, grad_factor, found_inf, lr, lr_decay, eps, weight_decay,
    maximize, zero_grad,
):  # fmt: skip
    count_steps(state_steps, found_inf)

    def update(i, param, grad, state_sum):
        step = state_steps[i].double()  # a tensor: nothing is read back from a GPU
        grad = grad + weight_decay * param if weight_decay else grad
        state_sum.addcmul_(grad, grad)
        param.sub_(grad / (state_sum.sqrt() + eps) * (lr / (1 + (step - 1) * lr_decay)))

    frame = (master_params, grad_factor, found_inf, maximize, zero_grad)
    update_composed(params, grads, [state_sums], *frame, update)


adagrad_step = Kernel(
    "adagrad_step(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] state_sums, Tensor(d!)[] state_steps, "
    "Tensor(e!)[] master_params, Tensor? grad_factor, Tensor? found_inf, float lr, float lr_decay, float eps, "
    "float weight_decay, bool maximize, bool zero_grad) -> ()",
    module="adagrad",
    torch=_adagrad_torch,
    supports={"cpu": None, "triton": leaves_float64_to_torch},
)
