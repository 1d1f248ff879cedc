"""NVIDIA's run-time compiler, libnvrtc, through ctypes: a `Build` and an architecture in, a cubin out.

Every torch for CUDA brings the library; no toolkit, compiler or header has to be installed.
"""

import ctypes
import importlib.util
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from . import source_files
from .machine import Build

# NVRTC takes a generic lambda for a host function, unlike nvcc, unless the default is the device.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space")

PROTOTYPES = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),
    "nvrtcGetSupportedArchs": (POINTER(c_int),),
    "nvrtcCreateProgram": (
        *(POINTER(c_void_p), c_char_p, c_char_p),
        *(c_int, POINTER(c_char_p), POINTER(c_char_p)),
    ),
    "nvrtcCompileProgram": (c_void_p, c_int, POINTER(c_char_p)),
    "nvrtcGetProgramLogSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetProgramLog": (c_void_p, c_char_p),
    "nvrtcGetCUBINSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetCUBIN": (c_void_p, c_char_p),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
}
COMPILATION_ERROR = 6


class CompileError(RuntimeError):
    """A kernel does not compile; the message holds the compiler's log."""


class Compiled(NamedTuple):
    cubin: bytes
    log: str


def _folders():
    """Where libnvrtc may lie, torch's own first."""
    nvidia = importlib.util.find_spec("nvidia")
    for root in nvidia.submodule_search_locations if nvidia else ():
        yield from sorted(Path(root).glob("*/lib"))
    yield Path(torch.__file__).parent / "lib"
    for toolkit in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if toolkit:
            yield Path(toolkit) / "lib64"


def _paths() -> list[Path]:
    """Every libnvrtc found, the CUDA version that torch was built with first."""
    found = [path for folder in _folders() for path in sorted(folder.glob("libnvrtc*.so*"), reverse=True)]
    libraries = [path for path in found if "builtins" not in path.name and ".alt." not in path.name]
    major = f".so.{(torch.version.cuda or '').partition('.')[0]}"
    return sorted(libraries, key=lambda path: major not in path.name)


@cache
def library() -> ctypes.CDLL:
    """libnvrtc with its prototypes.

    Raises:
        ImportError: there is none.
    """
    reasons = []
    for path in [*_paths(), Path("libnvrtc.so.13"), Path("libnvrtc.so.12")]:
        try:
            # libnvrtc opens its builtins by name only, and finds them where they are loaded already.
            for builtins in path.parent.glob("libnvrtc-builtins*.so*") if path.is_absolute() else ():
                if ".alt." not in builtins.name:
                    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            loaded = ctypes.CDLL(str(path))
            break
        except OSError as error:
            reasons.append(str(error))
    else:
        raise ImportError(f"libnvrtc is not here, pip install nvidia-cuda-nvrtc brings it ({'; '.join(reasons)})")
    for name, argument_types in PROTOTYPES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = argument_types, c_int
    loaded.nvrtcGetErrorString.argtypes, loaded.nvrtcGetErrorString.restype = (c_int,), c_char_p
    return loaded


@cache
def unavailable() -> str | None:
    try:
        library()
    except ImportError as error:
        return str(error)
    return None


def _call(name, *arguments):
    if code := getattr(library(), name)(*arguments):
        raise RuntimeError(f"cuda: {name} failed: {library().nvrtcGetErrorString(code).decode()}")


@cache
def version() -> str:
    major, minor = c_int(), c_int()
    _call("nvrtcVersion", byref(major), byref(minor))
    return f"{major.value}.{minor.value}"


@cache
def architectures() -> tuple[int, ...]:
    """What this compiler can compile for: (75, 80, ..., 121), say."""
    count = c_int()
    _call("nvrtcGetNumSupportedArchs", byref(count))
    numbers = (c_int * count.value)()
    _call("nvrtcGetSupportedArchs", numbers)
    return tuple(numbers)


def _text_of(program, size_function, text_function) -> bytes:
    size = c_size_t()
    _call(size_function, program, byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(text_function, program, buffer)
    return buffer.raw


def compile_build(build: Build, arch: str) -> Compiled:
    """Compiles csrc/cuda/<source>.cu with its macros.

    Args:
        arch: as `machine.arch_name` gives it, "sm_90a".

    Raises:
        CompileError: with the compiler's log.
    """
    (main, text), *headers = source_files.with_headers(build.source).items()
    names = (c_char_p * len(headers))(*(name.encode() for name, _ in headers))
    texts = (c_char_p * len(headers))(*(header.encode() for _, header in headers))
    options = [*OPTIONS, f"--gpu-architecture={arch}", *(f"-D{name}={value}" for name, value in build.macros)]
    encoded = (c_char_p * len(options))(*(option.encode() for option in options))
    program = c_void_p()
    _call("nvrtcCreateProgram", byref(program), text.encode(), main.encode(), len(headers), texts, names)
    try:
        code = library().nvrtcCompileProgram(program, len(options), encoded)
        log = _text_of(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0\n").decode()
        if code:
            reason = log if code == COMPILATION_ERROR else library().nvrtcGetErrorString(code).decode() + "\n" + log
            raise CompileError(f"cuda: {build} does not compile for {arch} with NVRTC {version()}:\n{reason}")
        return Compiled(_text_of(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"), log)
    finally:
        _call("nvrtcDestroyProgram", byref(program))
