"""SGD with the arguments, defaults and state_dict of torch.optim.SGD."""

import torch

from ..ops.sgd import sgd
from .base import EXTRAS, MultiTensorOptimizer


class SGD(MultiTensorOptimizer, torch.optim.SGD):
    __doc__ = f"torch.optim.SGD in one pass over memory; the formula is bigkern.sgd's.\n{EXTRAS}"

    _num_lists = 3

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        *,
        maximize=False,
        foreach=None,
        differentiable=False,
        fused=None,
        max_grad_norm=None,
        zero_grad=False,
        master_weights=False,
    ):
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._add_extras(max_grad_norm, zero_grad, master_weights)

    def _update(self, group, lists, *, master_params, **frame):
        params, grads, buffers = lists
        # A buffer starts as the gradient itself, whatever the dampening; parameters may start at different times.
        starts = [buffer is None for buffer in buffers] or [False] * len(params)
        for i in [i for i, start in enumerate(starts) if start]:
            buffers[i] = torch.zeros_like(master_params[i] if master_params else params[i])
        for first_step in dict.fromkeys(starts):
            chosen = [i for i, start in enumerate(starts) if start == first_step]
            sgd(
                *([items[i] for i in chosen] if items else [] for items in (params, grads, buffers)),
                lr=self._number("lr", group["lr"]),
                momentum=group["momentum"],
                dampening=group["dampening"],
                weight_decay=self._number("weight_decay", group["weight_decay"]),
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                first_step=first_step,
                master_params=[master_params[i] for i in chosen] if master_params else [],
                zero_grad=group["zero_grad"],
                **frame,
            )
        for param, buffer in zip(params, buffers, strict=False):
            self.state[param]["momentum_buffer"] = buffer
