"""Cases of the ops on images: batch_norm_act, group_norm and the poolings."""

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


def _group_norm(name, shape=(3, 6, 9, 11), num_groups=2, parameters=("weight", "bias"), offset=0.0, **options):
    def inputs():
        return {"input": torch.randn(shape) + offset, **{name: torch.randn(shape[1]) for name in parameters}}

    return Case(
        "group_norm",
        name,
        inputs,
        lambda input, **rest: bigkern.group_norm(input, num_groups, **rest, **options),
        lambda input, **rest: F.group_norm(input, num_groups, **rest, **options),
        ("input", *parameters),
    )


GROUP_NORM = [
    _group_norm("3x6x9x11 in 2 groups"),
    _group_norm("70x12 in 3 groups", (70, 12), 3),
    _group_norm("1x2x5003 in 1 group, eps 0.1", (1, 2, 5003), 1, eps=0.1),
    _group_norm("no parameters", parameters=()),
    _group_norm("mean 100", offset=100.0),
]


def _pool(op, name, *options, shape=(2, 5, 17, 19), channels_last=False):
    def call(module):
        function = getattr(module, op)
        return lambda input: function(input.contiguous(memory_format=LAYOUTS[channels_last]), *options)

    inputs = lambda: {"input": torch.randn(shape)}  # noqa: E731
    return Case(op, name, inputs, call(bigkern), call(F), ("input",))


MAX_POOL2D = [
    _pool("max_pool2d", "2 by 2", 2),
    _pool("max_pool2d", "3 by 3, stride 2, padding 1", 3, 2, 1),
    _pool("max_pool2d", "3 by 3, stride 2, padding 1, channels last", 3, 2, 1, channels_last=True),
    _pool("max_pool2d", "3 by 2, dilation 2, ceil mode", (3, 2), (2, 3), 1, 2, True),
]

AVG_POOL2D = [
    _pool("avg_pool2d", "2 by 2", 2),
    _pool("avg_pool2d", "3 by 3, stride 2, padding 1, channels last", 3, 2, 1, channels_last=True),
    _pool("avg_pool2d", "3 by 2, ceil mode, padding not counted", (3, 2), (2, 3), 1, True, False),
    _pool("avg_pool2d", "divisor 7", 3, 2, 1, False, True, 7),
]
ADAPTIVE_AVG_POOL2D = [
    _pool("adaptive_avg_pool2d", "to 1 by 1", 1),
    _pool("adaptive_avg_pool2d", "to 7 by 5, channels last", (7, 5), channels_last=True),
    _pool("adaptive_avg_pool2d", "to 20 by 19", (20, None)),
]
