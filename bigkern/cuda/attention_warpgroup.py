"""Launches attention's forward kernel for Hopper, and says for which calls it is."""

import torch

from .attention_common import heads_per_section, is_aligned, padded_dim, score_scale
from .machine import Machine, build

ROWS_PER_CONSUMER = 64
MAX_STAGES = 4


def warpgroups_take(machine: Machine, query, key, value, attn_mask, dropout_p: float, scale: float) -> bool:
    """Whether `attention_forward_warpgroup` computes this: 16 bits, no mask, no dropout, tensors that TMA reads."""
    if not machine.has_warpgroups or query.dtype == torch.float32 or attn_mask is not None or dropout_p > 0:
        return False
    tensors_fit = all(is_aligned(tensor) and not is_expanded(tensor) for tensor in (query, key, value))
    # the output is contiguous; scores are hidden by -inf, and their maximum is taken, before they get their scale
    return tensors_fit and value.shape[3] * value.element_size() % 16 == 0 and scale > 0.0


def is_expanded(tensor: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


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
    barrier_bytes = 8 * (1 + 4 * MAX_STAGES)
    stages = min(MAX_STAGES, (machine.shared_memory - query_bytes - barrier_bytes) // stage_bytes)
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
        query_bytes + stages * stage_bytes + barrier_bytes,
    )


def _tensor_map(machine: Machine, tensor: torch.Tensor, rows: int):
    """Describes [batch, heads, len, dim] for boxes of `rows` x 64."""
    # TMA checks the stride of a dimension of size 1, too, where torch may have any
    strides = [stride if size > 1 else 8 for stride, size in zip(tensor.stride()[:3], tensor.shape[:3], strict=True)]
    return machine.tensor_map(tensor.as_strided(tensor.shape, (*strides, 1)), (1, 1, rows, 64), 128)
