"""Adagrad with the arguments, defaults and state_dict of torch.optim.Adagrad."""

import torch

from ..ops.adagrad import adagrad
from .base import EXTRAS, MultiTensorOptimizer


class Adagrad(MultiTensorOptimizer, torch.optim.Adagrad):
    __doc__ = f"torch.optim.Adagrad in one pass over memory; the formula is bigkern.adagrad's.\n{EXTRAS}"

    _num_lists = 4

    def __init__(
        self,
        params,
        lr=1e-2,
        lr_decay=0,
        weight_decay=0,
        initial_accumulator_value=0,
        eps=1e-10,
        foreach=None,
        *,
        maximize=False,
        differentiable=False,
        fused=None,
        max_grad_norm=None,
        zero_grad=False,
        master_weights=False,
    ):
        super().__init__(
            params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, foreach, maximize=maximize,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._add_extras(max_grad_norm, zero_grad, master_weights)

    def _update(self, group, lists, **frame):
        adagrad(
            *lists,
            lr=self._number("lr", group["lr"]),
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            zero_grad=group["zero_grad"],
            **frame,
        )
