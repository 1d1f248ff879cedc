"""BERT's three embeddings, added, normalized and dropped out: the index vectors are [rows], the tables [*, columns]."""

from .array_module import array_module
from .embedding import check_rows, embedding_backward
from .layer_norm import layer_norm_backward, layer_norm_forward
from .philox import dropout_keep_rows


def embedding_layer_norm_forward(
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    rng_state,
    padding_idx,
    eps,
    dropout_p,
):
    """(output [rows, columns], mean [rows], rstd [rows])"""
    total = _sum(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    output, mean, rstd = layer_norm_forward(total, weight, bias, eps)
    return output * _dropout_weight(rng_state, dropout_p, output.shape), mean, rstd


def embedding_layer_norm_backward(
    grad_output,
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    mean,
    rstd,
    rng_state,
    padding_idx,
    dropout_p,
    needs_table_grads,
    needs_weight_grad,
    needs_bias_grad,
):
    """(grad_word_weight, grad_position_weight, grad_token_type_weight, grad_weight, grad_bias)

    Each has 0 elements unless it is needed.
    """
    xp = array_module(grad_output)
    total = _sum(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    grad_output = grad_output * _dropout_weight(rng_state, dropout_p, grad_output.shape)
    needs = (needs_table_grads, needs_weight_grad, needs_bias_grad)
    gradient, *grads = layer_norm_backward(grad_output, total, weight, bias, mean, rstd, *needs)
    if not needs_table_grads:
        return *(xp.zeros(0) for _ in range(3)), *grads
    return (
        *embedding_backward(gradient, input, len(word_weight), padding_idx, False),
        *embedding_backward(gradient, position_ids, len(position_weight), -1, False),
        *embedding_backward(gradient, token_type_ids, len(token_type_weight), -1, False),
        *grads,
    )


def _sum(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight):
    for ids, table in ((input, word_weight), (position_ids, position_weight), (token_type_ids, token_type_weight)):
        check_rows("embedding_layer_norm", ids, len(table))
    return word_weight[input] + position_weight[position_ids] + token_type_weight[token_type_ids]


def _dropout_weight(rng_state, dropout_p, shape):
    """What each element is multiplied by: 0, or 1 / (1 - dropout_p)"""
    return 1.0 if rng_state is None else dropout_keep_rows(rng_state, dropout_p, *shape) / (1 - dropout_p)
