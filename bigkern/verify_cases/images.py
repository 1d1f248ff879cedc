"""Cases of the ops on images: batch_norm_act."""

import torch
import torch.nn.functional as F

import bigkern

from .case import Case

LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


def _batch_norm_act(
    name,
    shape=(5, 7, 9, 11),
    training=True,
    residual=False,
    activation="none",
    channels_last=False,
    statistics=False,
):
    def inputs():
        drawn = {"input": torch.randn(shape), **{name: torch.randn(shape[1]) for name in ("weight", "bias")}}
        drawn |= {"running_mean": torch.randn(shape[1]), "running_var": torch.rand(shape[1]) + 0.5}
        return drawn | ({"residual": torch.randn(shape)} if residual else {})

    def ours(input, running_mean, running_var, weight, bias, residual=None):
        input = input.contiguous(memory_format=LAYOUTS[channels_last])
        # The call updates what it is given: each call gets its own.
        running = running_mean.clone(), running_var.clone()
        output = bigkern.batch_norm_act(input, *running, weight, bias, training, 0.1, 1e-5, residual, activation)
        return {"running_mean": running[0], "running_var": running[1]} if statistics else output

    def theirs(input, running_mean, running_var, weight, bias, residual=None):
        running = running_mean.clone(), running_var.clone()
        output = F.batch_norm(input, *running, weight, bias, training)
        output = output if residual is None else output + residual
        output = F.relu(output) if activation == "relu" else output
        return {"running_mean": running[0], "running_var": running[1]} if statistics else output

    gradients = ("input", "weight", "bias", *(("residual",) if residual else ()))
    return Case("batch_norm_act", name, inputs, ours, theirs, () if statistics else gradients)


BATCH_NORM_ACT = [
    _batch_norm_act("training"),
    _batch_norm_act("training, residual, relu", residual=True, activation="relu"),
    _batch_norm_act("training, residual, relu, channels last", residual=True, activation="relu", channels_last=True),
    _batch_norm_act("inference, relu", training=False, activation="relu"),
    _batch_norm_act("inference, residual, channels last", training=False, residual=True, channels_last=True),
    _batch_norm_act("training 300x33", (300, 33)),
    _batch_norm_act("running statistics", statistics=True),
]
