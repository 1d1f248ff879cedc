"""What the ops over lists of tensors share: their checks, and the frame of an update in PyTorch's operators.

An optimizer's op changes its lists in place and returns nothing. In all of them:

- grads are multiplied by `grad_factor`, a tensor of one element, before anything else (clipping, loss scaling);
- where `found_inf`, a tensor of one element, is not 0, nothing changes but what zero_grad asks for;
- `master_params`, float32 copies of float16 or bfloat16 parameters, are what is updated, and params their rounding;
  the state is then float32 too. An empty list: parameters are updated as they are, with state of their dtype;
- `zero_grad` leaves the gradients zero;
- arithmetic is in float32, and in float64 for float64 parameters.
"""

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LOW_PRECISION = (torch.float16, torch.bfloat16)


def check_lists(op: str, params: list, grads: list, master_params: list, **states: list):
    """Raises where the lists of an optimizer's op do not belong together; an empty one is an absent one.

    Raises:
        TypeError: a dtype that does not go with its parameter's.
        ValueError: lengths or shapes differ, or tensors are on several devices.
    """
    shapes, dtypes, devices = [p.shape for p in params], [p.dtype for p in params], [p.device for p in params]
    kinds = set(dtypes)
    if not kinds.issubset(FLOATING):
        raise TypeError(f"{op}: params must be floating, got {next(d for d in dtypes if d not in FLOATING)}")
    if master_params and not kinds.issubset(LOW_PRECISION):
        raise TypeError(f"{op}: master_params go with float16 and bfloat16 params")
    if len(set(devices)) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got {devices[0]} and others")
    state_dtypes = [torch.float32] * len(params) if master_params else dtypes
    for name, tensors in {"grads": grads, "master_params": master_params, **states}.items():
        if not tensors and name != "grads":
            continue
        if len(tensors) != len(params):
            raise ValueError(f"{op}: {len(params)} params, but {len(tensors)} {name}")
        expected = dtypes if name == "grads" else state_dtypes
        for what, found, wanted in (
            ("have shape", [t.shape for t in tensors], shapes),
            ("be", [t.dtype for t in tensors], expected),
            ("be on", [t.device for t in tensors], devices),
        ):
            if found != wanted:
                i = next(i for i, value in enumerate(found) if value != wanted[i])
                error = TypeError if what == "be" else ValueError
                must, got = (tuple(value) if what == "have shape" else value for value in (wanted[i], found[i]))
                raise error(f"{op}: {name}[{i}] must {what} {must}, got {got}")


def check_steps(op: str, params: list, state_steps: list, found_inf):
    """Raises where state_steps do not belong to params, or found_inf could be honoured only by waiting for the GPU.

    Raises:
        TypeError: a step is not float32 or float64.
        ValueError: lengths differ, a step is not one number, or found_inf is on another device than the steps.
    """
    if len(state_steps) != len(params):
        raise ValueError(f"{op}: {len(params)} params, but {len(state_steps)} state_steps")
    for step in state_steps:
        if step.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: state_steps must be float32 or float64, got {step.dtype}")
        if step.numel() != 1:
            raise ValueError(f"{op}: state_steps must hold one number each, got shape {tuple(step.shape)}")
    if found_inf is not None and found_inf.device != state_steps[0].device:
        raise ValueError(f"{op}: found_inf is on {found_inf.device}; the state_steps must be there too")


def update_composed(params, grads, states, master_params, grad_factor, found_inf, maximize, zero_grad, update):
    """An optimizer's op in PyTorch's operators.

    Args:
        states: the lists of state; empty ones are absent.
        update: function (number of the tensor, param, grad, *state) that changes param and state in place, given as
            copies in float32 or float64.
    """
    states = [state for state in states if state]
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        targets = [master_params[i] if master_params else param, *(state[i] for state in states)]
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        values = [target.to(dtype, copy=True) for target in targets]
        g = grad.to(dtype)
        if grad_factor is not None:
            g = g * grad_factor
        if maximize:
            g = -g
        update(i, values[0], g, *values[1:])
        for target, value in zip(targets, values, strict=True):
            target.copy_(value if found_inf is None else torch.where(found_inf != 0, target, value))
        if master_params:
            param.copy_(master_params[i])
        if zero_grad:
            grad.zero_()


def count_steps(state_steps, found_inf):
    """Adds one to every step, unless found_inf says that this step is skipped."""
    if found_inf is None:
        torch._foreach_add_(state_steps, 1)
    else:
        taken = (found_inf == 0).to(state_steps[0].dtype).reshape(())
        torch._foreach_add_(state_steps, [taken] * len(state_steps))


def leaves_float64_to_torch(params, *others):
    """The reason of a GPU backend for not taking a call."""
    return "float64 is left to PyTorch on a GPU" if any(p.dtype == torch.float64 for p in params) else None
