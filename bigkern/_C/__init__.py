"""The C++ kernels, one compiled module per instruction set; `load` picks the best that this processor can run.

`BIGKERN_CPU_ISA=baseline|avx2|avx512` forces a lower one.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import platform
from functools import cache
from pathlib import Path
from types import ModuleType

# What each instruction set asks of the processor, weakest first; the names are those of /proc/cpuinfo.
REQUIRED_FEATURES = {
    "baseline": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma", "f16c"),
}


@cache
def cpu_features() -> frozenset[str]:
    """Feature flags of this machine's processor; empty where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def supported_instruction_sets() -> list[str]:
    """Instruction sets that are built and that this processor can run, weakest first."""
    return [
        name
        for name, needed in REQUIRED_FEATURES.items()
        if cpu_features().issuperset(needed) and importlib.util.find_spec(f"{__name__}.{name}")
    ]


def build_error() -> str:
    """Why the C++ kernels are missing."""
    report = Path(__file__).with_name("build.json")
    if report.exists() and (error := json.loads(report.read_text())["error"]):
        return f"the C++ module was not built when bigkern was installed: {error}"
    return f"no C++ module for {platform.machine()} is installed; reinstall bigkern with a C++ compiler present"


@cache
def _bind_openmp() -> None:
    """Puts one OpenMP runtime into the process before the kernels look for it: torch's, else the system's."""
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")
    else:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


@cache
def load(instruction_set: str) -> ModuleType:
    """The kernels compiled for `instruction_set`; ImportError with the reason where they cannot run here."""
    if instruction_set not in REQUIRED_FEATURES:
        raise ImportError(f"unknown instruction set {instruction_set!r}; one of {', '.join(REQUIRED_FEATURES)}")
    if instruction_set not in supported_instruction_sets():
        missing = [flag for flag in REQUIRED_FEATURES[instruction_set] if flag not in cpu_features()]
        raise ImportError(f"this processor lacks {', '.join(missing)}" if missing else build_error())
    _bind_openmp()
    return importlib.import_module(f"{__name__}.{instruction_set}")


def best() -> ModuleType:
    """The fastest module that runs here, or the one that BIGKERN_CPU_ISA names."""
    if forced := os.environ.get("BIGKERN_CPU_ISA"):
        return load(forced)
    supported = supported_instruction_sets()
    if not supported:
        raise ImportError(build_error())
    return load(supported[-1])
