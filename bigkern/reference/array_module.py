"""What lets the oracle run on CuPy arrays too: CuPy in, CuPy out."""

import numpy as np


def array_module(*arrays):
    """numpy, or cupy where one of `arrays` is CuPy's; None and plain numbers may be among them."""
    for array in arrays:
        if type(array).__module__.partition(".")[0] == "cupy":
            import cupy

            return cupy
    return np


def largest(array, axis, initial, keepdims=False):
    """array.max(axis, initial=initial), an argument that CuPy lacks: what the maximum is of nothing, and at least."""
    xp = array_module(array)
    if array.size == 0:
        return xp.full(array.sum(axis, keepdims=keepdims).shape, initial, array.dtype)
    return xp.maximum(array.max(axis, keepdims=keepdims), initial)
