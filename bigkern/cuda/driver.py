"""GPUs as machines: kernels are loaded into the context that torch uses, and launched on torch's current stream."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from ctypes import addressof, byref, c_int, c_uint32, c_uint64, c_void_p, create_string_buffer
from functools import cache

import torch

from . import cubins, libcuda, nvrtc
from .arguments import LaunchBuffer, signature_of
from .machine import Machine, TensorMap, arch_name

OLDEST = 80
# What a block may use without asking for more.
DEFAULT_SHARED_MEMORY = 48 * 1024

# CUtensorMapDataType, CUtensorMapSwizzle and CUtensorMapL2promotion of cuda.h.
TENSOR_MAP_TYPES = {
    **{torch.uint8: 0, torch.int8: 0, torch.int32: 3, torch.int64: 5},
    **{torch.float16: 6, torch.float32: 7, torch.float64: 8, torch.bfloat16: 9},
}
TENSOR_MAP_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
NO_INTERLEAVE, PROMOTE_TO_256_BYTES, FILL_WITH_ZEROS = 0, 3, 0
KEPT_TENSOR_MAPS = 1024


class Function:
    """A kernel in a device's context."""

    __slots__ = ("handle", "shared_bytes")

    def __init__(self, handle: int, declared_bytes: int):
        self.handle = c_void_p(handle)
        # Of dynamic shared memory that it may be launched with, beside what it declares.
        self.shared_bytes = DEFAULT_SHARED_MEMORY - declared_bytes


class Device(Machine):
    """One GPU.

    Args:
        index: torch's number of it.
        driver: libcuda.
        stream_of: index -> the handle of torch's current stream there.
    """

    def __init__(self, index: int, driver: libcuda.Driver, stream_of: Callable[[int], int]):
        self.index = index
        self._driver = driver
        self._stream_of = stream_of
        ordinal = driver.out(c_int, "cuDeviceGet", index)
        attribute = {
            name: driver.out(c_int, "cuDeviceGetAttribute", number, ordinal)
            for name, number in libcuda.DEVICE_ATTRIBUTE.items()
        }
        self.arch = 10 * attribute["compute_capability_major"] + attribute["compute_capability_minor"]
        self.num_multiprocessors = attribute["multiprocessor_count"]
        self.shared_memory = attribute["max_shared_memory_per_block_optin"]
        self._context = driver.out(c_void_p, "cuDevicePrimaryCtxRetain", ordinal)
        self._modules = {}
        self._functions = {}
        self._tensor_maps = {}
        self._buffers = []
        self._loading = threading.Lock()

    def launch(self, build, kernel, grid, block, args, shared_bytes=0):
        function = self._functions.get((build, kernel))
        if function is None:
            function = self._load(build, kernel)
        if shared_bytes > function.shared_bytes:
            self._allow_shared_memory(function, shared_bytes, f"{kernel} of {build}")
        x, y, z = (grid, 1, 1) if type(grid) is int else (*grid, 1, 1)[:3]
        signature = signature_of(tuple(map(type, args)))
        values = signature.values(args, self.index, kernel)
        stream = self._stream_of(self.index)
        try:
            buffer = self._buffers.pop()  # taken, not shared: other threads launch at the same time
        except IndexError:
            buffer = LaunchBuffer()
        signature.pack_into(
            buffer.memory, 0, x, y, z, block, 1, 1, shared_bytes, stream, 0, 0, signature.length, *values
        )
        driver = self._driver
        code = driver.cuCtxGetCurrent(buffer.context)
        if code == 0 and buffer.context.value == self._context:
            code = driver.cuLaunchKernelEx(buffer.config, function.handle, None, buffer.extra)
        else:
            with self._in_context():
                code = driver.cuLaunchKernelEx(buffer.config, function.handle, None, buffer.extra)
        self._buffers.append(buffer)
        if code:
            sizes = f"grid {x}x{y}x{z}, block {block}, {shared_bytes} bytes of shared memory"
            raise driver.error(code, "cuLaunchKernelEx", f"{kernel} of {build}, {sizes}")

    def tensor_map(self, tensor, box, swizzle_bytes):
        # The bytes depend on nothing else, so they hold for whatever tensor has the same address and layout.
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, box, swizzle_bytes)
        opaque = self._tensor_maps.get(key)
        if opaque is None:
            opaque = encode_tensor_map(self._driver, tensor, box, swizzle_bytes)
            if len(self._tensor_maps) >= KEPT_TENSOR_MAPS:
                self._tensor_maps.clear()
            self._tensor_maps[key] = opaque
        return TensorMap(opaque, tensor)

    def _load(self, build, kernel) -> Function:
        driver, name = self._driver, f"{kernel} of {build}"
        with self._loading:
            cubin = None if build in self._modules else cubins.load(build, arch_name(self.arch))
            with self._in_context(), self._loading_allowed_in_capture():
                if cubin:
                    self._modules[build] = driver.out(c_void_p, "cuModuleLoadData", cubin, doing=str(build))
                handle = driver.out(c_void_p, "cuModuleGetFunction", self._modules[build], kernel.encode(), doing=name)
                attribute = libcuda.FUNCTION_SHARED_SIZE_BYTES
                declared_bytes = driver.out(c_int, "cuFuncGetAttribute", attribute, handle, doing=name)
            return self._functions.setdefault((build, kernel), Function(handle, declared_bytes))

    def _allow_shared_memory(self, function, shared_bytes, name):
        if shared_bytes > self.shared_memory:
            raise ValueError(
                f"cuda: {name} asks for {shared_bytes} bytes of shared memory, a block has {self.shared_memory}"
            )
        with self._in_context():
            attribute = libcuda.FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._driver.call(
                "cuFuncSetAttribute", function.handle, attribute, shared_bytes, doing=f"{name}, {shared_bytes} bytes"
            )
        function.shared_bytes = shared_bytes

    @contextmanager
    def _in_context(self):
        """Makes this device's context the thread's: torch's current device may be another, a thread may have none."""
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.out(c_void_p, "cuCtxPopCurrent_v2")

    @contextmanager
    def _loading_allowed_in_capture(self):
        """A first launch may come while a CUDA graph is captured; loading allocates, which a capture forbids."""
        mode = c_int(libcuda.STREAM_CAPTURE_MODE_RELAXED)
        self._driver.call("cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            yield
        finally:
            self._driver.call("cuThreadExchangeStreamCaptureMode", byref(mode))


def encode_tensor_map(driver: libcuda.Driver, tensor: torch.Tensor, box, swizzle_bytes: int) -> bytes:
    """The 128 bytes that describe a tensor for TMA; the arguments are those of `Machine.tensor_map`."""
    rank = tensor.ndim
    memory = create_string_buffer(128 + 64)
    address = (addressof(memory) + 63) // 64 * 64
    itemsize = tensor.element_size()
    driver.call(
        "cuTensorMapEncodeTiled",
        address,
        TENSOR_MAP_TYPES[tensor.dtype],
        rank,
        tensor.data_ptr(),
        # The driver counts dimensions from the contiguous one, whose stride it does not ask for.
        (c_uint64 * rank)(*reversed(tensor.shape)),
        (c_uint64 * rank)(*(stride * itemsize for stride in reversed(tensor.stride()[:-1]))),
        (c_uint32 * rank)(*reversed(box)),
        (c_uint32 * rank)(*[1] * rank),
        NO_INTERLEAVE,
        TENSOR_MAP_SWIZZLES[swizzle_bytes],
        PROMOTE_TO_256_BYTES,
        FILL_WITH_ZEROS,
        doing=f"{tuple(tensor.shape)} with strides {tensor.stride()} of {tensor.dtype}, box {tuple(box)}, "
        f"swizzle {swizzle_bytes}",
    )
    offset = address - addressof(memory)
    return memory.raw[offset : offset + 128]


_devices: dict[int, Device] = {}
_opening = threading.Lock()


def device_of(tensor: torch.Tensor) -> Device:
    """The GPU that a tensor is on.

    Raises:
        ValueError: it is not on a CUDA device.
    """
    device = _devices.get(tensor.get_device())
    return device if device is not None and tensor.is_cuda else _open_device_of(tensor)


def _open_device_of(tensor):
    if not tensor.is_cuda:
        raise ValueError(f"cuda: the kernels take tensors on a CUDA device, got one on {tensor.device}")
    with _opening:
        index = tensor.get_device()
        if index not in _devices:
            _devices[index] = Device(index, libcuda.driver(), torch._C._cuda_getCurrentRawStream)
        return _devices[index]


@cache
def unavailable() -> str | None:
    """Why no CUDA kernel can run in this process, or None."""
    if torch.version.hip or not torch.cuda.is_available():
        return "no CUDA device"
    if reason := libcuda.unavailable():
        return reason
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if reason := architecture_unavailable(10 * major + minor):
            return f"cuda:{index}: {reason}"
    return None


def architecture_unavailable(arch: int) -> str | None:
    """Why there are no kernels for an architecture, or None."""
    if arch < OLDEST:
        return f"the CUDA kernels need compute capability 8.0, this device has {arch // 10}.{arch % 10}"
    if arch_name(arch) in cubins.prebuilt():
        return None
    if reason := nvrtc.unavailable():
        return f"no prebuilt cubins for {arch_name(arch)}, and nothing to compile them with: {reason}"
    if arch not in nvrtc.architectures():
        return f"NVRTC {nvrtc.version()} cannot compile for {arch_name(arch)}, a newer one can"
    return None
