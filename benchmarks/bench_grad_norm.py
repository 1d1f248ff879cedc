"""The norm of all gradients together, against torch.nn.utils.get_total_norm with and without foreach."""

import torch

import bigkern

from .common import Case
from .optimizers import LISTS, count, draw

OPS = ("grad_norm",)


def _case(name, dtype=torch.float32):
    shapes = LISTS[name]
    return Case(
        f"{name} {str(dtype).removeprefix('torch.')}",
        lambda device: {"grads": [param.grad for param in draw(shapes, device, dtype)]},
        lambda grads: bigkern.grad_norm(grads, 1.0),
        lambda grads: torch.nn.utils.get_total_norm(grads),
        peers={"one by one": lambda grads: torch.nn.utils.get_total_norm(grads, foreach=False)},
        bytes=count(shapes) * dtype.itemsize,
    )


CASES = [*map(_case, LISTS), _case("ResNet-50, 161 tensors", torch.bfloat16)]
TINY_CASES = [_case("MLP, 4 tensors")]
