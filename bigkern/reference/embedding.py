"""Rows of a table: input is [count] indices, weight is [num_embeddings, embedding_dim]."""

from .array_module import array_module


def embedding_forward(input, weight, padding_idx, scale_grad_by_freq):
    """(output [count, embedding_dim],); padding_idx and scale_grad_by_freq concern the gradient alone."""
    check_rows("embedding", input, len(weight))
    return (weight[input],)


def embedding_backward(grad_output, input, num_embeddings, padding_idx, scale_grad_by_freq):
    """(grad_weight [num_embeddings, embedding_dim],)"""
    xp = array_module(grad_output)
    check_rows("embedding", input, num_embeddings)
    grad_weight = xp.zeros((num_embeddings, grad_output.shape[1]), grad_output.dtype)
    for row, grad in zip(input.tolist(), grad_output, strict=True):
        if row != padding_idx:
            grad_weight[row] += grad / (input == row).sum() if scale_grad_by_freq else grad
    return (grad_weight,)


def check_rows(op, input, num_embeddings):
    """Raises IndexError at the first index that is no row of the table."""
    for index in input.reshape(-1).tolist():
        if not 0 <= index < num_embeddings:
            raise IndexError(f"{op}: index {index} is out of range for a table of {num_embeddings} rows")
