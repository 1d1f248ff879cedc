"""CUDA C++ kernels from csrc/cuda, through their launchers in bigkern/cuda."""

import importlib
from functools import cache

from ..cuda import driver
from ..cuda.machine import substitute


def unavailable() -> str | None:
    # The tests' emulator runs CUDA kernels where there is no GPU; it comes and goes within a process.
    return None if substitute() else driver.unavailable()


@cache
def launcher(module: str, name: str):
    return getattr(importlib.import_module(f"bigkern.cuda.{module}"), name)


def run(kernel, args):
    outputs = kernel.allocate_outputs(args)
    launcher(kernel.module, kernel.name)(*kernel.launch_arguments(args), *outputs)
    return outputs
