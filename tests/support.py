"""What every op's test needs: the places where ops run, and the numerical policy."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

import bigkern
from bigkern import _C
from bigkern.backends import cpu
from bigkern.backends.reference import to_numpy as to_oracle
from bigkern.cuda.machine import use_machine
from bigkern.policy import FEW, assert_within_policy, max_error, tolerance
from bigkern.registration import KERNELS
from tests.cuda_emulator import machine as cuda_emulator

__all__ = [
    "EMULATOR",
    "FEW",
    "LOW_PRECISION",
    "PLACES",
    "Place",
    "assert_within_policy",
    "max_error",
    "places_of",
    "to_oracle",
    "tolerance",
]

LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """One backend on one device; for the cpu backend also one instruction set."""

    backend: str
    device: str
    instruction_set: str | None = None

    def __str__(self):
        return "-".join(filter(None, (self.backend, self.instruction_set, self.device if self.device != "cpu" else "")))

    @property
    def dtypes(self):
        """The floating dtypes that this place computes; Triton leaves float64 to PyTorch."""
        low_to_single = (torch.float32, torch.float16, torch.bfloat16)
        return low_to_single if self.backend in ("triton", "cuda") else (*low_to_single, torch.float64)

    @property
    def slow(self):
        """Interpreted or emulated: keep sizes small."""
        return self.backend in ("triton", "cuda") and self.device == "cpu"

    @contextmanager
    def use(self):
        with ExitStack() as stack:
            stack.enter_context(bigkern.use_backend(self.backend))
            if self.instruction_set:
                stack.enter_context(cpu.use_instruction_set(self.instruction_set))
            if self == EMULATOR:
                stack.enter_context(use_machine(cuda_emulator.Emulator()))
            yield


def _places():
    # The baseline is always listed: where the C++ module is missing, its tests must fail and not vanish.
    instruction_sets = _C.supported_instruction_sets() or ["baseline"]
    places = [Place("reference", "cpu"), Place("torch", "cpu")]
    places += [Place("cpu", "cpu", name) for name in instruction_sets]
    if torch.cuda.is_available():
        places += [Place("cuda", "cuda"), Place("triton", "cuda"), Place("torch", "cuda")]
    else:
        places.append(Place("triton", "cpu"))
    return [*places, EMULATOR]


# csrc/cuda on the CPU.
EMULATOR = Place("cuda", "cpu")
PLACES = _places()


def places_of(op: str) -> list[Place]:
    """Where an op's kernels run: the cuda places only from the first kernel on that is written for cuda."""
    on_cuda = any("cuda" in kernel.supports for kernel in KERNELS.values() if kernel.module == op)
    return [place for place in PLACES if place.backend != "cuda" or on_cuda]


def run_python(code, **environment):
    """Runs `code` in a fresh interpreter; returns its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
