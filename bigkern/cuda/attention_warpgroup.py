"""Launches attention's kernels for Hopper, and says for which calls they are."""

import torch

from .attention_common import heads_per_section, is_aligned, padded_dim, score_scale
from .machine import Machine, build

ROWS_PER_CONSUMER = 64
MAX_STAGES = 4
BARRIER_BYTES = 8 * (1 + 4 * MAX_STAGES)
# Of attention_backward_warpgroup.cu: rows of the result in a block, rows that a step takes, the widest tile.
BACKWARD_ROWS, BACKWARD_STEP, BACKWARD_MAX_DIM = 128, 64, 128


def warpgroups_take(machine: Machine, query, key, value, attn_mask, dropout_p: float, scale: float) -> bool:
    """Whether `attention_forward_warpgroup` computes this: 16 bits, no mask, no dropout, tensors that TMA reads."""
    if not machine.has_warpgroups or query.dtype == torch.float32 or attn_mask is not None or dropout_p > 0:
        return False
    # scores are hidden by -inf, and their maximum is taken, before they get their scale
    return all(map(_fits_tma, (query, key, value))) and _has_aligned_rows(value) and scale > 0.0


def backward_warpgroups_take(
    machine: Machine, grad_output, query, key, value, attn_mask, dropout_p: float, scale: float
) -> bool:
    """Whether `attention_backward_warpgroup` computes this: the same, up to dim 128."""
    if max(query.shape[3], value.shape[3]) > BACKWARD_MAX_DIM or not _has_aligned_rows(query):
        return False
    return _fits_tma(grad_output) and warpgroups_take(machine, query, key, value, attn_mask, dropout_p, scale)


def _fits_tma(tensor: torch.Tensor) -> bool:
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return is_aligned(tensor) and not is_expanded


def _has_aligned_rows(tensor: torch.Tensor) -> bool:
    """Whether rows of a contiguous tensor of this shape start at multiples of 16 bytes."""
    return tensor.shape[3] * tensor.element_size() % 16 == 0


def consumers_of(head_dim: int, value_dim: int) -> int:
    """Warpgroups of 64 queries: three have 160 registers a thread, two have 240."""
    return 3 if max(head_dim, value_dim) <= 64 else 2


def keys_of(head_dim: int, value_dim: int) -> int:
    """Keys in a tile: sums, scores and probabilities of 128 keys take value_dim / 2 + 96 registers."""
    return 128 if value_dim <= 128 and head_dim <= 192 else 64


def attention_forward_warpgroup(machine: Machine, query, key, value, is_causal: bool, scale: float, output, lse):
    """attention_forward where `warpgroups_take` it."""
    batch, heads, len_q, head_dim = query.shape
    kv_heads, len_k, value_dim = value.shape[1:]
    consumers, keys = consumers_of(head_dim, value_dim), keys_of(head_dim, value_dim)
    block_q = ROWS_PER_CONSUMER * consumers
    row_bytes, value_row_bytes = 2 * padded_dim(head_dim), 2 * padded_dim(value_dim)
    query_bytes, stage_bytes = block_q * max(row_bytes, value_row_bytes), keys * (row_bytes + value_row_bytes)
    stages = min(MAX_STAGES, (machine.shared_memory - query_bytes - BARRIER_BYTES) // stage_bytes)
    machine.launch(
        build(
            "attention_warpgroup",
            SCALAR=query.dtype,
            HEAD_DIM=padded_dim(head_dim),
            VALUE_DIM=padded_dim(value_dim),
            CONSUMERS=consumers,
            BLOCK_K=keys,
            STAGES=stages,
        ),
        "attention_forward_warpgroup_kernel",
        -(-len_q // block_q) * batch * heads,
        128 * (1 + consumers),
        (
            _tensor_map(machine, query, block_q),
            _tensor_map(machine, key, keys),
            _tensor_map(machine, value, keys),
            _tensor_map(machine, output, ROWS_PER_CONSUMER),
            lse,
            batch,
            heads,
            heads // kv_heads,
            heads_per_section(key, value),
            len_q,
            len_k,
            is_causal,
            score_scale(scale, 1.0),
        ),
        query_bytes + stages * stage_bytes + BARRIER_BYTES,
    )


def attention_backward_warpgroup(
    machine: Machine, grad_output, query, key, value, statistics, is_causal, scale, grad_query, grad_key, grad_value
):
    """attention_backward where `backward_warpgroups_take` it; statistics [2, batch, heads, padded_len_q] are those of
    attention_delta.cu."""
    batch, heads, len_q, head_dim = query.shape
    kv_heads, len_k, value_dim = value.shape[1:]
    built = build(
        "attention_backward_warpgroup",
        SCALAR=query.dtype,
        HEAD_DIM=padded_dim(head_dim),
        VALUE_DIM=padded_dim(value_dim),
        STAGES=MAX_STAGES,
    )
    stage_bytes = BACKWARD_STEP * 2 * (padded_dim(head_dim) + padded_dim(value_dim))
    statistics_bytes = 2 * BACKWARD_STEP * 4
    rows_bytes = stage_bytes // BACKWARD_STEP * BACKWARD_ROWS
    shared_bytes = rows_bytes + MAX_STAGES * (stage_bytes + statistics_bytes) + BARRIER_BYTES
    sizes = (batch, heads, heads // kv_heads, heads_per_section(key, value))
    scales = (is_causal, scale, score_scale(scale, 1.0))
    machine.launch(
        built,
        "attention_backward_key_value_warpgroup_kernel",
        -(-len_k // BACKWARD_ROWS) * batch * kv_heads,
        384,
        (
            _tensor_map(machine, query, BACKWARD_STEP),
            _tensor_map(machine, key, BACKWARD_ROWS),
            _tensor_map(machine, value, BACKWARD_ROWS),
            _tensor_map(machine, grad_output, BACKWARD_STEP),
            machine.tensor_map(statistics, (2, 1, 1, BACKWARD_STEP), 0),
            _tensor_map(machine, grad_key, ROWS_PER_CONSUMER),
            _tensor_map(machine, grad_value, ROWS_PER_CONSUMER),
            *sizes,
            len_q,
            len_k,
            *scales,
        ),
        shared_bytes,
    )
    machine.launch(
        built,
        "attention_backward_query_warpgroup_kernel",
        -(-len_q // BACKWARD_ROWS) * batch * heads,
        384,
        (
            _tensor_map(machine, query, BACKWARD_ROWS),
            _tensor_map(machine, key, BACKWARD_STEP),
            _tensor_map(machine, value, BACKWARD_STEP),
            _tensor_map(machine, grad_output, BACKWARD_ROWS),
            _tensor_map(machine, grad_query, ROWS_PER_CONSUMER),
            statistics[0],
            statistics[1],
            *sizes,
            len_q,
            statistics.shape[3],
            len_k,
            *scales,
        ),
        shared_bytes,
    )


def _tensor_map(machine: Machine, tensor: torch.Tensor, rows: int):
    """Describes [batch, heads, len, dim] for boxes of `rows` x 64."""
    # TMA checks the stride of a dimension of size 1, too, where torch may have any
    strides = [stride if size > 1 else 8 for stride, size in zip(tensor.stride()[:3], tensor.shape[:3], strict=True)]
    return machine.tensor_map(tensor.as_strided(tensor.shape, (*strides, 1)), (1, 1, rows, 64), 128)
