"""NVIDIA's driver library, libcuda, through ctypes: the few functions that launching needs, each result checked."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from functools import cache

# CUresult and the other enumerations are ints, CUdevice too; contexts, modules, functions and streams are pointers.
PROTOTYPES = {
    "cuInit": (c_uint32,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernelEx": (c_void_p, c_void_p, c_void_p, c_void_p),
    "cuTensorMapEncodeTiled": (
        *(c_void_p, c_int, c_uint32, c_void_p),
        *(POINTER(c_uint64), POINTER(c_uint64), POINTER(c_uint32), POINTER(c_uint32)),
        *(c_int, c_int, c_int, c_int),
    ),
}

# Values of cuda.h's enumerations.
DEVICE_ATTRIBUTE = {
    "multiprocessor_count": 16,
    "compute_capability_major": 75,
    "compute_capability_minor": 76,
    "max_shared_memory_per_block_optin": 97,
}
FUNCTION_SHARED_SIZE_BYTES = 1
FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
STREAM_CAPTURE_MODE_RELAXED = 2
LAUNCH_PARAM_END, LAUNCH_PARAM_BUFFER_POINTER, LAUNCH_PARAM_BUFFER_SIZE = 0, 1, 2


class DriverError(RuntimeError):
    """A driver call failed; the message names the call, the error and what was being done."""


class Driver:
    """libcuda, initialised; its functions are attributes that return the error code."""

    def __init__(self, path: str = "libcuda.so.1"):
        self.library = ctypes.CDLL(path)
        for name, argument_types in PROTOTYPES.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = argument_types, c_int
            setattr(self, name, function)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments, doing: str = "") -> None:
        """Calls a function and raises `DriverError` unless it succeeds."""
        if code := getattr(self, name)(*arguments):
            raise self.error(code, name, doing)

    def error(self, code: int, name: str, doing: str) -> DriverError:
        texts = []
        for function in (self.cuGetErrorName, self.cuGetErrorString):
            text = c_char_p()
            function(code, byref(text))
            texts.append(text.value.decode() if text.value else str(code))
        where = f" ({doing})" if doing else ""
        return DriverError(f"cuda: {name} failed with {texts[0]}: {texts[1]}{where}")

    def version(self) -> str:
        """The newest CUDA that the driver supports: "13.0"."""
        number = self.out(c_int, "cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def out(self, type_, name: str, *arguments, doing: str = ""):
        """What a function writes to its first argument."""
        value = type_()
        self.call(name, byref(value), *arguments, doing=doing)
        return value.value


@cache
def driver() -> Driver:
    """
    Raises:
        OSError: no driver is installed.
        DriverError: it does not start.
    """
    return Driver()


@cache
def unavailable() -> str | None:
    try:
        driver()
    except (OSError, DriverError) as error:
        return f"the NVIDIA driver cannot be used: {error}"
    return None
