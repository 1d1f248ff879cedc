"""The NumPy oracle: float64 throughout, then rounded once to the output's dtype."""

import importlib

import torch


def unavailable() -> str | None:
    return None


def to_numpy(value):
    """A tensor as a NumPy array, floating dtypes widened to float64; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def run(kernel, args):
    outputs = kernel.allocate_outputs(args)
    function = getattr(importlib.import_module(f"bigkern.reference.{kernel.module}"), kernel.name)
    results = function(*(to_numpy(arg) for arg in kernel.launch_arguments(args)))
    for output, result in zip(outputs, results, strict=True):
        output.copy_(torch.as_tensor(result))
    return outputs
