"""Adam and AdamW with the arguments, defaults and state_dict of torch.optim's."""

import torch

from ..ops.adam import adam
from .base import EXTRAS, MultiTensorOptimizer


class _Adam(MultiTensorOptimizer):
    _num_lists = 6

    def _update(self, group, lists, **frame):
        beta1, beta2 = group["betas"]
        adam(
            *lists,
            lr=self._number("lr", group["lr"]),
            beta1=self._number("betas", beta1),
            beta2=self._number("betas", beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            zero_grad=group["zero_grad"],
            **frame,
        )


class Adam(_Adam, torch.optim.Adam):
    __doc__ = f"torch.optim.Adam in one pass over memory; the formula is bigkern.adam's.\n{EXTRAS}"

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        *,
        foreach=None,
        maximize=False,
        capturable=False,
        differentiable=False,
        fused=None,
        decoupled_weight_decay=False,
        max_grad_norm=None,
        zero_grad=False,
        master_weights=False,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        self._add_extras(max_grad_norm, zero_grad, master_weights)


class AdamW(_Adam, torch.optim.AdamW):
    __doc__ = f"torch.optim.AdamW in one pass over memory; the formula is bigkern.adam's.\n{EXTRAS}"

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        max_grad_norm=None,
        zero_grad=False,
        master_weights=False,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._add_extras(max_grad_norm, zero_grad, master_weights)
