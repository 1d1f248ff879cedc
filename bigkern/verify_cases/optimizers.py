"""Cases of the optimizers and of grad_norm."""

import torch

import bigkern

from ..ops.grad_norm import clip_grads_step
from .case import Case


def _draw_parameters():
    shapes = {"0": (37, 65), "1": (33,), "2": ()}
    return {f"{kind}_{i}": torch.randn(shape) for kind in ("param", "grad") for i, shape in shapes.items()}


def _pairs(tensors):
    return [[tensors[f"{kind}_{i}"] for i in range(3)] for kind in ("param", "grad")]


def _in_one_line(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _optimizer(op, name, class_name, **options):
    """Three steps; the parameters, and each kind of state, as one vector."""

    def outcome(optimizer_class, options):
        def call(**tensors):
            params, grads = _pairs(tensors)
            optimizer = optimizer_class(params, **options)
            for step in range(3):
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad.roll(step)
                optimizer.step()
            kinds = [kind for kind in optimizer.state[params[0]] if kind != "step"]
            state = {kind: _in_one_line([optimizer.state[param][kind] for param in params]) for kind in kinds}
            return {"params": _in_one_line(params), **state}

        return call

    ours, theirs = getattr(bigkern.optim, class_name), getattr(torch.optim, class_name)
    return Case(op, name, _draw_parameters, outcome(ours, options), outcome(theirs, options))


def _grad_norm(name, norm_type, max_norm):
    def ours(**tensors):
        grads = _pairs(tensors)[1]
        total_norm, grad_factor = bigkern.grad_norm(grads, max_norm, norm_type)
        clip_grads_step(grads, grad_factor)
        return {"total_norm": total_norm, "clipped": _in_one_line(grads)}

    def theirs(**tensors):
        params, grads = _pairs(tensors)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        total_norm = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
        return {"total_norm": total_norm, "clipped": _in_one_line(grads)}

    return Case("grad_norm", name, _draw_parameters, ours, theirs)


# An epsilon that float16 can hold: squares of small gradients are 0 there.
EPS = {"eps": 1e-2}
OPTIMIZERS = [
    _optimizer("sgd", "plain", "SGD", lr=0.1),
    _optimizer("sgd", "momentum, dampening, decay", "SGD", lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    _optimizer("sgd", "nesterov, maximize", "SGD", lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    _optimizer("adam", "decay", "Adam", lr=0.1, weight_decay=0.1, **EPS),
    _optimizer("adam", "decoupled decay", "AdamW", lr=0.1, **EPS),
    _optimizer("adam", "amsgrad, maximize", "Adam", lr=0.1, amsgrad=True, maximize=True, **EPS),
    _optimizer("rmsprop", "plain", "RMSprop", lr=0.1, **EPS),
    _optimizer(
        "rmsprop", "centered, momentum, decay", "RMSprop", lr=0.1, centered=True, momentum=0.9, weight_decay=0.1, **EPS
    ),
    _optimizer("adagrad", "decay of both", "Adagrad", lr=0.1, lr_decay=0.1, weight_decay=0.1, **EPS),
    _grad_norm("norm 2, clipped", 2.0, 1.0),
    _grad_norm("largest, clipped", float("inf"), 1.0),
    _grad_norm("norm 2, not clipped", 2.0, 1e6),
]
