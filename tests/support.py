"""What every op's test needs: the places where ops run, and the numerical policy."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

import bigkern
from bigkern import _C
from bigkern.backends import cpu

LOW_PRECISION = (torch.float16, torch.bfloat16)
# "a few ulp" of the numerical policy.
FEW = 4


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


def to_oracle(value):
    """A tensor as float64 (or integer) NumPy; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def max_error(actual, oracle) -> float:
    """Largest absolute difference; NaN and infinities must be in the same places, else the error is infinite."""
    actual, oracle = np.asarray(to_oracle(actual), np.float64), np.asarray(to_oracle(oracle), np.float64)
    assert actual.shape == oracle.shape, f"shape {actual.shape}, the oracle has {oracle.shape}"
    finite = np.isfinite(oracle)
    if not np.array_equal(actual[~finite], oracle[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return float("inf")
    return float(np.abs(actual[finite] - oracle[finite]).max(initial=0))


def tolerance(oracle, torch_result, dtype, magnitude=None) -> float:
    """The numerical policy: twice PyTorch's own error in the same dtype, plus a few ulp of the largest value.

    magnitude: where terms cancel to nearly nothing, the sums of their absolute values, whose ulp then counts.
    """
    oracle = np.asarray(to_oracle(oracle), np.float64)
    magnitude = oracle if magnitude is None else np.asarray(to_oracle(magnitude), np.float64)
    finite = magnitude[np.isfinite(magnitude)]
    ulp = torch.finfo(dtype).eps * np.abs(finite).max(initial=0)
    # Below the normal range an ulp no longer shrinks with the value.
    ulp = max(ulp, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    torch_error = max_error(torch_result, oracle) if torch_result is not None else 0.0
    return 2 * (torch_error if np.isfinite(torch_error) else 0.0) + FEW * float(ulp)


def assert_within_policy(actual, oracle, torch_result, dtype=None, what="", magnitude=None):
    """`actual` is as close to the float64 oracle as the numerical policy asks.

    `torch_result` is PyTorch's own answer in the same dtype on the same inputs (None: a few ulp hold).
    """
    dtype = dtype or actual.dtype
    error, allowed = max_error(actual, oracle), tolerance(oracle, torch_result, dtype, magnitude)
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g} ({dtype})"
