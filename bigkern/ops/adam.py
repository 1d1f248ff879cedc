"""adam: Adam, AdamW and AMSGrad over a list of parameters, in one pass over memory; flags tell the three apart.

    g = grad * grad_factor (negated to maximize)
    adam:   g += weight_decay * param                  adamw (decoupled_weight_decay):  param *= 1 - lr * weight_decay
    exp_avg = beta1 * exp_avg + (1 - beta1) * g        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
    amsgrad: max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq), which then stands for exp_avg_sq
    param -= lr / (1 - beta1^step) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^step) + eps)

Sources: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015); Loshchilov and Hutter, "Decoupled Weight
Decay Regularization" (2019); Reddi et al., "On the Convergence of Adam and Beyond" (2018). No gradient passes through.
"""

import torch

from ..multi_tensor import check_lists, check_steps, count_steps, leaves_float64_to_torch, update_composed
from ..registration import Kernel


def adam(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    max_exp_avg_sqs,
    state_steps,
    *,
    lr,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    maximize=False,
    master_params=(),
    grad_factor=None,
    found_inf=None,
    zero_grad=False,
):
    """One step of Adam on every parameter, in place; `bigkern.optim.Adam` and `AdamW` are the optimizers around it.

    Args:
        params, grads: lists of floating tensors, pairwise of one shape and dtype; layouts may differ.
        exp_avgs, exp_avg_sqs: running averages of the gradients and of their squares.
        max_exp_avg_sqs: the largest averages of squares so far, for AMSGrad; empty without it.
        state_steps: one float tensor of one element for each parameter: how many steps were taken. On the CPU, or on
            the device of params: then a step reads nothing back from it.
        lr, beta1, beta2, eps, weight_decay, maximize: as in torch.optim.Adam.
        decoupled_weight_decay: AdamW's weight decay.
        master_params: float32 copies of float16 or bfloat16 params, which are updated in their place; the state is
            then float32.
        grad_factor: tensor of one element that multiplies the gradients first, or None.
        found_inf: tensor of one element; where it is not 0 the step is skipped. Or None.
        zero_grad: leaves the gradients zero.

    Raises:
        TypeError, ValueError: lists that do not belong together.
    """
    params, grads, exp_avgs, exp_avg_sqs = list(params), list(grads), list(exp_avgs), list(exp_avg_sqs)
    max_exp_avg_sqs, state_steps, master_params = list(max_exp_avg_sqs), list(state_steps), list(master_params)
    if not params:
        return
    if not exp_avgs or not exp_avg_sqs:
        raise ValueError("adam: exp_avgs and exp_avg_sqs must not be empty")
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    check_lists("adam", params, grads, master_params, **states)
    check_steps("adam", params, state_steps, found_inf)
    adam_step(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, master_params, grad_factor, found_inf,
        float(lr), float(beta1), float(beta2), float(eps), float(weight_decay), decoupled_weight_decay, maximize,
        zero_grad,
    )  # fmt: skip


def _adam_torch(
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, master_params, grad_factor, found_inf, lr,
    beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize, zero_grad,
):  # fmt: skip
    count_steps(state_steps, found_inf)

    def update(i, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq=None):
        step = state_steps[i].double()  # a tensor: nothing is read back from a GPU
        if decoupled_weight_decay:
            param.mul_(1 - lr * weight_decay)
        elif weight_decay:
            grad = grad + weight_decay * param
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if max_exp_avg_sq is not None:
            exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
        denominator = exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
        param.sub_(exp_avg / denominator * (lr / (1 - beta1**step)))

    states = [exp_avgs, exp_avg_sqs, max_exp_avg_sqs]
    update_composed(params, grads, states, master_params, grad_factor, found_inf, maximize, zero_grad, update)


adam_step = Kernel(
    "adam_step(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] state_steps, Tensor(g!)[] master_params, Tensor? grad_factor, "
    "Tensor? found_inf, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "bool decoupled_weight_decay, bool maximize, bool zero_grad) -> ()",
    module="adam",
    torch=_adam_torch,
    supports={"cpu": None, "triton": leaves_float64_to_torch, "cuda": leaves_float64_to_torch},
)
