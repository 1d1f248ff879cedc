"""What the optimizers add to their namesakes in torch.optim, from which they inherit all the rest."""

import torch

from ..multi_tensor import LOW_PRECISION
from ..ops.grad_norm import grad_norm

EXTRAS = """
    Three arguments are bigkern's own, and None of them changes what a checkpoint holds for torch.optim:

    Args:
        max_grad_norm: gradients are clipped to this norm of all gradients together, as torch.nn.utils.clip_grad_norm_
            does before a step, but without a pass of its own: `.grad` keeps what it was. `grad_norm` then holds the
            norm before clipping. None: no clipping.
        zero_grad: a step leaves every gradient that it used zero, in the same pass.
        master_weights: float16 and bfloat16 parameters are updated through float32 copies, and their state is float32.

    foreach and fused are accepted, and every call is one multi-tensor kernel whatever they say; fused=True and
    capturable=True keep the step counts on the parameter's device, as in torch.optim. With fused=True,
    torch.amp.GradScaler leaves unscaling and skipping to the kernel. Not supported, with an error: differentiable=True,
    complex parameters, sparse gradients, and hyperparameters in tensors on a GPU.
"""


class MultiTensorOptimizer(torch.optim.Optimizer):
    """Comes before the class of torch.optim in the bases of an optimizer.

    A subclass says how many lists its torch.optim `_init_group` fills (`_num_lists`), parameters and gradients first,
    and makes one step over such lists in `_update`.
    """

    _num_lists: int

    # The norm of all gradients in the last step, before clipping: a tensor, or None where max_grad_norm is None.
    grad_norm = None

    def _add_extras(self, max_grad_norm, zero_grad, master_weights):
        """Makes the extra arguments options of every parameter group; called at the end of __init__."""
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"Invalid max_grad_norm value: {max_grad_norm}")
        extras = {"max_grad_norm": max_grad_norm, "zero_grad": zero_grad, "master_weights": master_weights}
        self.defaults.update(extras)
        self._fill_groups()
        self._reject_differentiable()

    def _fill_groups(self):
        for group in self.param_groups:
            for name in ("max_grad_norm", "zero_grad", "master_weights"):
                group.setdefault(name, self.defaults.get(name))

    def _reject_differentiable(self):
        if any(group["differentiable"] for group in self.param_groups):
            name = type(self).__name__
            raise NotImplementedError(
                f"bigkern.optim.{name}: differentiable=True is not supported; use torch.optim.{name}"
            )

    def __setstate__(self, state):
        super().__setstate__(state)
        self._fill_groups()  # a checkpoint of torch.optim has no such options

    # ---- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure=None):
        """One step of optimization.

        Args:
            closure: a function that computes the loss again and returns it; called with gradients enabled.

        Returns:
            What closure returned, or None.
        """
        self._check_graph_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_factor, found_inf = self._grad_factor(), getattr(self, "found_inf", None)
        for group in self.param_groups:
            for lists, masters in self._buckets(group):
                self._update(group, lists, master_params=masters, grad_factor=grad_factor, found_inf=found_inf)
        return loss

    def _check_graph_capture(self):
        """A captured graph would repeat one step count forever, unless the counts are on the device."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            for group in self.param_groups:
                if "capturable" in group and not (group["capturable"] or group.get("fused")):
                    raise RuntimeError(
                        f"bigkern.optim.{type(self).__name__}: pass capturable=True to capture a step in a CUDA graph"
                    )

    def _grad_factor(self):
        """What the gradients are multiplied by, a tensor of one element: clipping, and GradScaler's scale undone."""
        grad_scale = getattr(self, "grad_scale", None)
        limits = {group["max_grad_norm"] for group in self.param_groups}
        if len(limits) > 1:
            raise ValueError(f"max_grad_norm must be one number for all parameter groups, got {limits}")
        (max_grad_norm,) = limits
        self.grad_norm = None
        if max_grad_norm is not None:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            if grads:
                self.grad_norm, grad_factor = grad_norm(grads, max_grad_norm, grad_scale=grad_scale)
                return grad_factor
        return None if grad_scale is None else 1 / grad_scale

    def _buckets(self, group):
        """The lists of this group's parameters that have gradients, and their master weights, by device."""
        lists = self._lists_of(group)
        if not group["master_weights"] and len({param.device for param in lists[0]}) <= 1:
            yield lists, []
            return
        if group["master_weights"] and self._add_masters(lists[0]):
            lists = self._lists_of(group)
        masters = [self.state.get(param, {}).get("master_param") for param in lists[0]]
        keys = [(param.device, master is not None) for param, master in zip(lists[0], masters, strict=True)]
        for key in dict.fromkeys(keys):
            chosen = [i for i, other in enumerate(keys) if other == key]
            bucket = [[items[i] for i in chosen] if items else [] for items in lists]
            yield bucket, [masters[i] for i in chosen] if key[1] else []

    def _lists_of(self, group):
        lists = [[] for _ in range(self._num_lists)]
        self._init_group(group, *lists)
        if any(grad.is_sparse for grad in lists[1]):
            name = type(self).__name__
            raise RuntimeError(f"bigkern.optim.{name} does not support sparse gradients; use torch.optim.{name}")
        return lists

    def _add_masters(self, params):
        """Gives low-precision parameters that have none their master weight, and float32 state; True if any got one."""
        added = False
        for param in params:
            if param.dtype not in LOW_PRECISION or "master_param" in self.state[param]:
                continue
            state = self.state[param]
            for name, value in state.items():
                if name != "step" and isinstance(value, torch.Tensor):
                    state[name] = value.float()
            state["master_param"] = param.detach().float()
            added = True
        return added

    @staticmethod
    def _number(name, value):
        """A hyperparameter as a float, without waiting for a GPU."""
        if isinstance(value, torch.Tensor) and value.is_cuda:
            raise ValueError(
                f"bigkern.optim: {name} must be a number or a tensor on the CPU, got one on {value.device}"
            )
        return float(value)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict):
        """Loads the state_dict of this optimizer or of its namesake in torch.optim."""
        super().load_state_dict(state_dict)
        self._reject_differentiable()
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        keeps = [group["master_weights"] for group in self.param_groups for _ in group["params"]]
        for saved_id, param, keep in zip(saved_ids, params, keeps, strict=True):
            saved, state = state_dict["state"].get(saved_id, {}), self.state.get(param, {})
            master = saved.get("master_param")
            # torch.optim casts all state to the parameter's dtype, and leaves behind a master weight that it passed on.
            if not keep or master is None or master.dtype != torch.float32:
                state.pop("master_param", None)
                continue
            for name, value in saved.items():
                if name != "step" and isinstance(value, torch.Tensor):
                    state[name] = value.to(param.device, torch.float32)
