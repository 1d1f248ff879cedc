"""CPU kernels from csrc/cpu, through the C++ module."""

from contextlib import contextmanager
from functools import cache

from .. import _C

_module = None


@cache
def unavailable() -> str | None:
    try:
        module()
    except ImportError as error:
        return str(error)
    return None


def module():
    """The compiled module in use."""
    global _module
    if _module is None:
        _module = _C.best()
    return _module


@contextmanager
def use_instruction_set(name: str):
    """Runs the kernels compiled for `name` ("baseline", "avx2", "avx512") inside the `with` block."""
    global _module
    previous = module()
    _module = _C.load(name)
    try:
        yield
    finally:
        _module = previous


def run(kernel, args):
    outputs = kernel.allocate_outputs(args)
    getattr(module(), kernel.name)(*kernel.launch_arguments(args), *outputs)
    return outputs
