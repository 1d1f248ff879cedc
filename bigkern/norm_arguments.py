"""What layer_norm, rms_norm and add_layer_norm check, with PyTorch's errors, and the rows that they hand to kernels."""

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of means and reciprocal deviations, in which kernels accumulate: float32 for all but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_norm(op, input, normalized_shape, weight, bias=None):
    """Raises where input, weight or bias do not fit normalized_shape.

    Raises:
        TypeError: normalized_shape is not a tuple or list of ints.
        RuntimeError: shapes, dtypes or devices do not go together.
    """
    _check_normalized_shape(op, normalized_shape)
    if input.dtype not in FLOATING:
        raise RuntimeError(f"{op}: input must be floating, got {input.dtype}")
    expected = tuple(normalized_shape)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if tuple(parameter.shape) != expected:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(parameter.shape)} and normalized_shape = {list(expected)}"
            )
        if parameter.dtype not in FLOATING:
            raise RuntimeError(f"{op}: {name} must be floating, got {parameter.dtype}")
        if parameter.device != input.device:
            raise RuntimeError(f"{op}: {name} is on {parameter.device}, input on {input.device}")


def _check_normalized_shape(op, normalized_shape):
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(
            f"{op}(): argument 'normalized_shape' must be tuple of ints, not {type(normalized_shape).__name__}"
        )
    for position, size in enumerate(normalized_shape):
        if not isinstance(size, (int, torch.SymInt)):
            raise TypeError(
                f"{op}(): argument 'normalized_shape' must be tuple of ints, but found element of type "
                f"{type(size).__name__} at pos {position}"
            )
    if not normalized_shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            f"normalized_shape = {list(normalized_shape)}"
        )


def as_rows(input, normalized_shape):
    """input as [rows, columns], a view where its strides allow it."""
    outer = input.ndim - len(normalized_shape)
    if outer == 1 and input.ndim == 2:
        return input
    return input.reshape(input.shape[:outer].numel(), input.shape[outer:].numel())


def flat(parameter):
    """weight or bias as [columns], or None."""
    return parameter if parameter is None or parameter.ndim == 1 else parameter.reshape(-1)


def one_dtype(input, *parameters):
    """Whether PyTorch's own function takes these together on every device."""
    return all(parameter is None or parameter.dtype == input.dtype for parameter in parameters)


def triton_supports(input):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def cuda_supports(input):
    # Within a row, the kernels count in 32 bits.
    return "more than 2^30 columns" if input.shape[1] > 1 << 30 else triton_supports(input)
