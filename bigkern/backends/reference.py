"""The NumPy oracle: float64 throughout, then rounded once to the output's dtype."""

import importlib

import torch


def unavailable() -> str | None:
    return None


def to_numpy(value):
    """A tensor as a NumPy array, floating dtypes widened to float64; each of a list; anything else as it is."""
    if isinstance(value, list):
        return [to_numpy(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def run(kernel, args):
    outputs = kernel.allocate_outputs(args)
    function = getattr(importlib.import_module(f"bigkern.reference.{kernel.module}"), kernel.name)
    arrays = [to_numpy(arg) for arg in kernel.launch_arguments(args)]
    results = function(*arrays)
    if not kernel.mutated:
        for output, result in zip(outputs, results, strict=True):
            output.copy_(torch.as_tensor(result))
    for place in kernel.mutated:
        for tensor, array in zip(args[place], arrays[place], strict=True):
            tensor.detach().copy_(torch.as_tensor(array))
    return outputs
