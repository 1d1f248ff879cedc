"""What the benchmarks of the optimizers share: the lists of parameters, and one case from a pair of classes."""

from functools import partial

import torch

import bigkern

from .common import Case, device_here

# Of MLP(784, 64, 10).
MLP_SHAPES = ((64, 784), (64,), (10, 64), (10,))


def resnet50_shapes():
    """The 161 parameters of ResNet-50, 25.6 million numbers, most of them in a few large tensors."""
    shapes, channels = [(64, 3, 7, 7), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # with the weight and bias of its batch_norm
            channels = 4 * width
    return (*shapes, (1000, 2048), (1000,))


LISTS = {"one of 16M": ((1 << 24,),), "ResNet-50, 161 tensors": resnet50_shapes(), "MLP, 4 tensors": MLP_SHAPES}


def count(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes)


def draw(shapes, device, dtype):
    """Parameters with gradients, the same for every contestant."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in shapes:
        param, grad = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
        params.append(param.requires_grad_())
        param.grad = grad
    return params


def step_of(optimizer_class, shapes, device, dtype, clip=None, **options):
    """A function that makes one step and returns the first parameter."""
    params = draw(shapes, device, dtype)
    optimizer = optimizer_class(params, **options)

    def step():
        if clip:
            torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        return params[0]

    return step


def optimizer_case(name, class_name, shapes, passes, dtype=torch.float32, clip=None, fused=True, **options):
    """One step of bigkern.optim.<class_name> against torch.optim's default, foreach and fused.

    passes: how often a step must read or write a tensor of the parameters' size.
    clip: the gradients are clipped to this norm before, which reads them once more.
    """
    ours, theirs = getattr(bigkern.optim, class_name), getattr(torch.optim, class_name)
    fused = fused and (device_here() == "cpu" or class_name != "Adagrad")  # whose fused step is for CPUs

    def inputs(device):
        make = partial(step_of, shapes=shapes, device=device, dtype=dtype)
        made = {
            "ours": make(ours, max_grad_norm=clip, **options),
            "default": make(theirs, clip=clip, **options),
            "foreach": make(theirs, clip=clip, foreach=True, **options),
        }
        return {**made, "fused": make(theirs, clip=clip, fused=True, **options)} if fused else made

    peers = {"foreach": lambda foreach: foreach()}
    if fused:
        peers["fused"] = lambda fused: fused()
    numbers = count(shapes)
    return Case(
        f"{name} {str(dtype).removeprefix('torch.')}",
        inputs,
        lambda ours: ours(),
        lambda default: default(),
        peers=peers,
        bytes=numbers * dtype.itemsize * (passes + (1 if clip else 0)),
    )


def optimizer_cases(class_name, passes, fused=True, **options):
    """The three lists of parameters in float32."""
    return [optimizer_case(name, class_name, shapes, passes, fused=fused, **options) for name, shapes in LISTS.items()]
