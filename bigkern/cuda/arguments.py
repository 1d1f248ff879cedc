"""Kernel arguments as the bytes that the driver takes: the launch's sizes, then the arguments as C lays them out."""

import ctypes
from ctypes import c_void_p
from functools import cache
from struct import Struct

import torch

from .libcuda import LAUNCH_PARAM_BUFFER_POINTER, LAUNCH_PARAM_BUFFER_SIZE, LAUNCH_PARAM_END
from .machine import Addresses, TensorMap

# CUlaunchConfig: grid, block, bytes of shared memory; stream; attributes and their number. Then a size_t with the
# arguments' length, which ends at 64: the arguments follow, aligned as a TensorMap asks.
HEADER = "@7IPPIQ"
LENGTH_OFFSET, ARGUMENTS_OFFSET = 56, 64
# What a kernel can take before CUDA 12.1.
LONGEST = 4096
CODES = {int: "q", bool: "q", float: "f", type(None): "Q", Addresses: "Q", TensorMap: "128s"}


class Signature:
    """How arguments of these types are packed.

    Raises:
        TypeError: a type that no kernel takes, or a TensorMap that does not come first.
    """

    def __init__(self, types: tuple[type, ...]):
        codes = ["Q" if issubclass(type_, torch.Tensor) else CODES.get(type_) for type_ in types]
        for position, (code, type_) in enumerate(zip(codes, types, strict=True)):
            if code is None:
                raise TypeError(f"cuda: argument {position} is a {type_.__name__}, which no kernel takes")
            if type_ is TensorMap and position != types.index(TensorMap) + types[:position].count(TensorMap):
                raise TypeError("cuda: TensorMap arguments must come one after the other")
        if TensorMap in types and types[0] is not TensorMap:
            raise TypeError("cuda: TensorMap arguments must come first")
        packer = Struct(HEADER + "".join(codes))
        self.length = packer.size - ARGUMENTS_OFFSET
        if self.length > LONGEST:
            raise TypeError(f"cuda: {self.length} bytes of arguments, {LONGEST} are allowed")
        self.pack_into = packer.pack_into
        self.tensors = tuple(i for i, type_ in enumerate(types) if issubclass(type_, torch.Tensor))
        self.tables = tuple(i for i, type_ in enumerate(types) if type_ is Addresses)
        self.others = tuple(i for i, type_ in enumerate(types) if type_ in (type(None), TensorMap))

    def values(self, args, device_index: int, kernel: str) -> list:
        """The numbers to pack.

        Raises:
            ValueError: a tensor is on another device.
        """
        values = list(args)
        for i in self.tables:
            values[i] = values[i].table
        for i in (*self.tensors, *self.tables):
            tensor = values[i]
            if tensor.get_device() != device_index:
                raise ValueError(f"{kernel}: argument {i} is on {tensor.device}, the first on cuda:{device_index}")
            values[i] = tensor.data_ptr()
        for i in self.others:
            values[i] = 0 if values[i] is None else values[i].opaque
        return values


@cache
def signature_of(types: tuple[type, ...]) -> Signature:
    return Signature(types)


class LaunchBuffer:
    """Memory for one launch: what `Signature.pack_into` writes, and the driver's pointers to it."""

    __slots__ = ("config", "context", "extra", "memory")

    def __init__(self):
        self.memory = ctypes.create_string_buffer(ARGUMENTS_OFFSET + LONGEST)
        address = ctypes.addressof(self.memory)
        self.config = c_void_p(address)
        self.extra = (c_void_p * 5)(
            *(LAUNCH_PARAM_BUFFER_POINTER, address + ARGUMENTS_OFFSET),
            *(LAUNCH_PARAM_BUFFER_SIZE, address + LENGTH_OFFSET),
            LAUNCH_PARAM_END,
        )
        self.context = c_void_p()
