"""Cases of layer_norm, rms_norm and add_layer_norm."""

import torch
import torch.nn.functional as F

import bigkern

from ..backends.torch_philox import dropout_keep_rows
from ..ops.add_layer_norm import add_layer_norm_forward
from .case import Case


def _norm(op, name, shape=(23, 101), dims=1, parameters=(), offset=0.0, **options):
    normalized_shape = shape[-dims:]

    def inputs():
        drawn = {"input": torch.randn(shape) + offset}
        return {**drawn, **{parameter: torch.randn(normalized_shape) for parameter in parameters}}

    ours, theirs = getattr(bigkern, op), getattr(F, op)
    return Case(
        op,
        name,
        inputs,
        lambda input, **rest: ours(input, normalized_shape, **rest, **options),
        lambda input, **rest: theirs(input, normalized_shape, **rest, **options),
        ("input", *parameters),
    )


LAYER_NORM = [
    _norm("layer_norm", "23x101", parameters=("weight", "bias")),
    _norm("layer_norm", "70x768", (70, 768), parameters=("weight", "bias")),
    _norm("layer_norm", "3x5x7x9 over two dimensions, eps 0.1", (3, 5, 7, 9), 2, ("weight", "bias"), eps=0.1),
    _norm("layer_norm", "2x9001, no bias", (2, 9001), parameters=("weight",)),
    _norm("layer_norm", "no parameters"),
    _norm("layer_norm", "mean 100", parameters=("weight", "bias"), offset=100.0),
]
RMS_NORM = [
    _norm("rms_norm", "23x101", parameters=("weight",)),
    _norm("rms_norm", "70x768", (70, 768), parameters=("weight",)),
    _norm("rms_norm", "3x5x7x9 over two dimensions, eps 0.1", (3, 5, 7, 9), 2, ("weight",), eps=0.1),
    _norm("rms_norm", "2x9001", (2, 9001), parameters=("weight",)),
    _norm("rms_norm", "no weight"),
]


def _add_layer_norm(name, shape=(23, 101), with_sum=False, dropped=False):
    """With dropout: the kernel on a random state of the case's own, and the formula with the mask of that state."""

    def inputs():
        drawn = {name: torch.randn(shape) for name in ("input", "residual")}
        drawn |= {name: torch.randn(shape[-1]) for name in ("weight", "bias")}
        return {**drawn, "rng_state": torch.tensor([1234567890123, 5])} if dropped else drawn

    def ours(input, residual, weight, bias, rng_state=None):
        if dropped:
            found = add_layer_norm_forward(input, residual, weight, bias, rng_state, 1e-5, DROPOUT_P, True)[:2]
        else:
            found = bigkern.add_layer_norm_with_sum(input, residual, shape[-1:], weight, bias)
        return found[0] + found[1] if with_sum else found[0]

    def theirs(input, residual, weight, bias, rng_state=None):
        if dropped:
            input = input * dropout_keep_rows(rng_state, DROPOUT_P, *shape) / (1 - DROPOUT_P)
        total = residual + input
        output = F.layer_norm(total, shape[-1:], weight, bias)
        return output + total if with_sum else output

    return Case("add_layer_norm", name, inputs, ours, theirs, ("input", "residual", "weight", "bias"))


DROPOUT_P = 0.1
ADD_LAYER_NORM = [
    _add_layer_norm("post-norm"),
    _add_layer_norm("post-norm, dropout", dropped=True),
    _add_layer_norm("pre-norm", with_sum=True),
    _add_layer_norm("pre-norm 70x768, dropout", (70, 768), with_sum=True, dropped=True),
    _add_layer_norm("post-norm 2x9001, dropout", (2, 9001), dropped=True),
]
