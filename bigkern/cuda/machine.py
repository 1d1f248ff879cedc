"""Where CUDA kernels run: the one interface between the launchers and a GPU, the emulator or a recorder.

Kernel arguments have three types, so that no launcher has to name any: a tensor or None is a pointer, an int or bool is
an `int64`, a float is a `float`. `Addresses` are a pointer to pointers. A `TensorMap` goes first, as the kernel's
`const __grid_constant__ TensorMap`.
"""

from abc import ABC, abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import NamedTuple

import torch

# The names that csrc/cuda/ptx.cuh gives to dtypes.
CUDA_NAMES = {torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Build(NamedTuple):
    """What is compiled: csrc/cuda/<source>.cu with these macros defined."""

    source: str
    macros: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        return " ".join([self.source, *(f"{name}={value}" for name, value in self.macros)])


@lru_cache(maxsize=None, typed=True)
def build(source: str, **macros) -> Build:
    """A `Build`; dtypes become their CUDA names, booleans 0 and 1."""
    return Build(source, tuple((name, _macro_value(value)) for name, value in sorted(macros.items())))


def _macro_value(value) -> str:
    if isinstance(value, torch.dtype):
        return CUDA_NAMES[value]
    return str(int(value)) if isinstance(value, bool) else str(value)


def arch_name(arch: int) -> str:
    """90 -> "sm_90a": what compilers call it, with the instructions that only this architecture has."""
    return f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"


class TensorMap(NamedTuple):
    """A tensor described for TMA; `opaque` is the 128 bytes that the kernel gets, `tensor` keeps the memory alive."""

    opaque: bytes
    tensor: torch.Tensor


class Addresses(NamedTuple):
    """Many pointers as one argument: `table`, int64 on the device, holds the addresses of `tensors`."""

    tensors: tuple[torch.Tensor, ...]
    table: torch.Tensor


class Machine(ABC):
    """A device with its properties.

    Attributes:
        arch: 10 * major + minor compute capability, e.g. 90.
        num_multiprocessors: how many blocks run side by side, at least.
        shared_memory: bytes of dynamic shared memory that one block may ask for.
    """

    arch: int
    num_multiprocessors: int
    shared_memory: int

    @property
    def has_warpgroups(self) -> bool:
        """wgmma and TMA as in csrc/cuda/warpgroup.cuh: Hopper only."""
        return self.arch == 90

    @abstractmethod
    def launch(self, build: Build, kernel: str, grid, block: int, args, shared_bytes: int = 0) -> None:
        """Runs `kernel` of `build` on the current stream: `grid` (an int, or up to three) blocks of `block` threads."""

    @abstractmethod
    def tensor_map(self, tensor: torch.Tensor, box: tuple[int, ...], swizzle_bytes: int) -> TensorMap:
        """Describes a tensor of 1 to 5 dimensions, the last one contiguous, for copies of `box` elements.

        Args:
            tensor: its address a multiple of 16 bytes, and every stride but the last, in bytes, too.
            box: elements to copy along each dimension, in the tensor's order; the last one times the element size must
                not exceed swizzle_bytes where that is not 0.
            swizzle_bytes: 0, 32, 64 or 128.
        """


# What one thread block may use, bytes (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


class Launch(NamedTuple):
    build: Build
    kernel: str
    block: int
    shared_bytes: int
    argument_types: tuple[type, ...]


class Recorder(Machine):
    """Runs nothing and notes what would be compiled for `arch`; for tensors on the meta device, say."""

    def __init__(self, arch: int):
        self.arch = arch
        self.num_multiprocessors = MULTIPROCESSORS.get(arch, 64)
        self.shared_memory = SHARED_MEMORY.get(arch, 48 * 1024)
        self.launches: list[Launch] = []

    def launch(self, build, kernel, grid, block, args, shared_bytes=0):
        self.launches.append(Launch(build, kernel, block, shared_bytes, tuple(map(type, args))))

    def tensor_map(self, tensor, box, swizzle_bytes):
        return TensorMap(bytes(128), tensor)


_substitute: ContextVar[Machine | None] = ContextVar("bigkern_cuda_machine", default=None)


@contextmanager
def use_machine(machine: Machine):
    """Runs CUDA launches inside the `with` block on `machine`, whatever device their tensors are on."""
    token = _substitute.set(machine)
    try:
        yield machine
    finally:
        _substitute.reset(token)


def substitute() -> Machine | None:
    """The machine of a `use_machine` block."""
    return _substitute.get()


def machine_of(tensor: torch.Tensor) -> Machine:
    """Where kernels on `tensor` run."""
    if machine := _substitute.get():
        return machine
    return _driver().device_of(tensor)


@cache
def _driver():
    from . import driver  # only where a kernel runs on a GPU

    return driver
