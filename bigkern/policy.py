"""The numerical policy: how close to the float64 oracle an op must be.

    max_error(bigkern) <= 2 * max_error(PyTorch's own op in the same dtype) + a few ulp of the largest value

`tests/` and `bigkern verify` both measure with this.
"""

import numpy as np
import torch

from .backends.reference import to_numpy

# "a few ulp".
FEW = 4


def max_error(actual, oracle) -> float:
    """Largest absolute difference; NaN and infinities must be in the same places, else the error is infinite.

    Raises:
        ValueError: the shapes differ.
    """
    actual, oracle = np.asarray(to_numpy(actual), np.float64), np.asarray(to_numpy(oracle), np.float64)
    if actual.shape != oracle.shape:
        raise ValueError(f"shape {actual.shape}, the oracle has {oracle.shape}")
    finite = np.isfinite(oracle)
    if not np.array_equal(actual[~finite], oracle[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return float("inf")
    return float(np.abs(actual[finite] - oracle[finite]).max(initial=0))


def tolerance(oracle, torch_result, dtype, magnitude=None) -> float:
    """The error that the policy allows; `torch_result` None: a few ulp. Integers have no ulp.

    magnitude: for sums whose terms cancel to nearly nothing, the sums of the terms' absolute values: theirs is the ulp,
    where it is larger than that of the result.
    """
    oracle = np.asarray(to_numpy(oracle), np.float64)
    sizes = [oracle] if magnitude is None else [oracle, np.asarray(to_numpy(magnitude), np.float64)]
    largest = max(np.abs(size[np.isfinite(size)]).max(initial=0) for size in sizes)
    ulp = 0.0
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        # Below the normal range an ulp no longer shrinks with the value.
        ulp = max(info.eps * largest, info.smallest_normal * info.eps)
    torch_error = max_error(torch_result, oracle) if torch_result is not None else 0.0
    return 2 * (torch_error if np.isfinite(torch_error) else 0.0) + FEW * float(ulp)


def assert_within_policy(actual, oracle, torch_result, dtype=None, what="", magnitude=None):
    """`actual` is as close to the float64 oracle as the numerical policy asks.

    `torch_result` is PyTorch's own answer in the same dtype on the same inputs (None: a few ulp hold).
    """
    dtype = dtype or actual.dtype
    error, allowed = max_error(actual, oracle), tolerance(oracle, torch_result, dtype, magnitude)
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g} ({dtype})"
