"""RMSprop with the arguments, defaults and state_dict of torch.optim.RMSprop."""

import torch

from ..ops.rmsprop import rmsprop
from .base import EXTRAS, MultiTensorOptimizer


class RMSprop(MultiTensorOptimizer, torch.optim.RMSprop):
    __doc__ = f"torch.optim.RMSprop in one pass over memory; the formula is bigkern.rmsprop's.\n{EXTRAS}"

    _num_lists = 6

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0,
        momentum=0,
        centered=False,
        capturable=False,
        foreach=None,
        maximize=False,
        differentiable=False,
        *,
        max_grad_norm=None,
        zero_grad=False,
        master_weights=False,
    ):
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, differentiable
        )
        self._add_extras(max_grad_norm, zero_grad, master_weights)

    def _update(self, group, lists, **frame):
        params, grads, square_avgs, momentum_buffers, grad_avgs, state_steps = lists
        rmsprop(
            params,
            grads,
            square_avgs,
            grad_avgs,
            momentum_buffers,
            state_steps,
            lr=self._number("lr", group["lr"]),
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            maximize=group["maximize"],
            zero_grad=group["zero_grad"],
            **frame,
        )
