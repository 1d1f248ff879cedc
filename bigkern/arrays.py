"""Arrays of other libraries (CuPy, NumPy, JAX) as arguments of the public ops, by DLPack: without a copy."""

import functools

import torch


def accepts_arrays(op):
    """`op`, whose tensors may all be arrays instead: any objects with `__dlpack__`.

    Results are tensors, which the other library's own `from_dlpack` takes.
    """

    @functools.wraps(op)
    def with_arrays(*args, **kwargs):
        # A call with tensors pays for one look at its first argument.
        if not args or not isinstance(args[0], torch.Tensor):
            args = [_as_tensor(arg) for arg in args]
            kwargs = {name: _as_tensor(arg) for name, arg in kwargs.items()}
        return op(*args, **kwargs)

    return with_arrays


def _as_tensor(value):
    if isinstance(value, torch.Tensor) or not hasattr(value, "__dlpack__"):
        return value
    return torch.from_dlpack(value)
