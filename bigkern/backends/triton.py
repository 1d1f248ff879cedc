"""Triton kernels from kernels/ (installed as bigkern.kernels)."""

import importlib
import os
from functools import cache

import torch


def interpreted() -> bool:
    """True where TRITON_INTERPRET=1 makes Triton run its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def unavailable() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if not torch.cuda.is_available() and not interpreted():
        return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for tests)"
    return None


@cache
def launcher(module: str, name: str):
    return getattr(importlib.import_module(f"bigkern.kernels.{module}"), name)


def run(kernel, args):
    outputs = kernel.allocate_outputs(args)
    launcher(kernel.module, kernel.name)(*kernel.launch_arguments(args), *outputs)
    return outputs
