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
from bigkern.policy import FEW, assert_within_policy, max_error, tolerance

__all__ = ["FEW", "LOW_PRECISION", "PLACES", "Place", "assert_within_policy", "max_error", "to_oracle", "tolerance"]

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
        """Interpreted: keep sizes small."""
        return self.backend == "triton" and self.device == "cpu"

    @contextmanager
    def use(self):
        with ExitStack() as stack:
            stack.enter_context(bigkern.use_backend(self.backend))
            if self.instruction_set:
                stack.enter_context(cpu.use_instruction_set(self.instruction_set))
            yield


def _places():
    # The baseline is always listed: where the C++ module is missing, its tests must fail and not vanish.
    instruction_sets = _C.supported_instruction_sets() or ["baseline"]
    places = [Place("reference", "cpu"), Place("torch", "cpu")]
    places += [Place("cpu", "cpu", name) for name in instruction_sets]
    if torch.cuda.is_available():
        places += [Place("triton", "cuda"), Place("torch", "cuda")]
    else:
        places.append(Place("triton", "cpu"))
    return places


PLACES = _places()


def run_python(code, **environment):
    """Runs `code` in a fresh interpreter; returns its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
