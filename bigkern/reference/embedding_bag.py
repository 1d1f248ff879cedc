"""Bags of rows of a table: input is [count] indices, offsets [bags] or, with the end of the last bag, [bags + 1]."""

import numpy as np

from .array_module import array_module
from .embedding import check_rows


def embedding_bag_forward(
    input, weight, offsets, per_sample_weights, mode, padding_idx, scale_grad_by_freq, include_last_offset
):
    """(output [bags, embedding_dim], bag_size [bags], max_indices: the winning rows, [bags, embedding_dim] for "max")

    Rows that are padding_idx count for nothing. An empty bag gives 0, and -1 for a winning row.
    """
    xp = array_module(input)
    check_rows("embedding_bag", input, len(weight))
    bags, columns = len(offsets) - include_last_offset, weight.shape[1]
    output, sizes = xp.zeros((bags, columns), weight.dtype), xp.zeros(bags, np.int64)
    winners = xp.full((bags, columns), -1)
    for bag, places in enumerate(_places(input, offsets, padding_idx, include_last_offset)):
        sizes[bag] = len(places)
        rows = weight[input[places]]
        if per_sample_weights is not None:
            rows = rows * per_sample_weights[places][:, None]
        if mode == "max" and len(places):
            output[bag] = rows.max(0)
            winners[bag] = input[places][rows.argmax(0)]
        elif len(places):
            output[bag] = rows.sum(0) if mode == "sum" else rows.sum(0) / len(places)
    return output, sizes, winners if mode == "max" else xp.zeros(0, np.int64)


def embedding_bag_backward(
    grad_output,
    input,
    weight,
    offsets,
    per_sample_weights,
    bag_size,
    max_indices,
    mode,
    padding_idx,
    scale_grad_by_freq,
    include_last_offset,
    needs_weight_grad,
    needs_per_sample_weights_grad,
):
    """(grad_weight, grad_per_sample_weights [count]); each has 0 elements unless it is needed."""
    xp = array_module(grad_output)
    check_rows("embedding_bag", input, len(weight))
    grad_weight, grad_samples = xp.zeros_like(weight), xp.zeros(len(input), weight.dtype)
    for bag, places in enumerate(_places(input, offsets, padding_idx, include_last_offset)):
        grad = grad_output[bag]
        if mode == "max":
            for column, row in enumerate(max_indices[bag].tolist()):
                if row >= 0:
                    grad_weight[row, column] += grad[column]
            continue
        for place in places.tolist():
            row = int(input[place])
            grad_samples[place] = grad @ weight[row]
            sample = 1 if per_sample_weights is None else per_sample_weights[place]
            share = grad * sample / (len(places) if mode == "mean" else 1)
            grad_weight[row] += share / (input == row).sum() if scale_grad_by_freq else share
    return (
        grad_weight if needs_weight_grad else xp.zeros(0),
        grad_samples if needs_per_sample_weights_grad else xp.zeros(0),
    )


def _places(input, offsets, padding_idx, include_last_offset):
    """For each bag, the places in input that count."""
    xp = array_module(input)
    begins = offsets.tolist()
    ends = begins[1:] if include_last_offset else [*begins[1:], len(input)]
    for begin, end in zip(begins, ends, strict=False):
        places = xp.arange(begin, end)
        yield places[input[places] != padding_idx]
