"""Philox4x32-10 in PyTorch's operators, without a sync: the masks of reference/philox.py."""

import torch

from ..reference.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD


def philox4x32(rng_state, c0, c1, c2):
    """Four broadcast int64 tensors of words, one after the other along a new last dimension.

    rng_state is (seed, offset): the key, and the last word of the counter.
    """
    seed, c3 = rng_state[0], rng_state[1] & WORD
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(ROUNDS):
        # The product wraps to a negative number; shift and mask still give its upper and lower word.
        product_0, product_1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (product_1 >> 32 & WORD) ^ c1 ^ k0, product_1 & WORD
        c2, c3 = (product_0 >> 32 & WORD) ^ c3 ^ k1, product_0 & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def dropout_keep_rows(rng_state, dropout_p, rows, columns):
    """reference.philox.dropout_keep_rows: [rows, columns] of booleans."""
    row = torch.arange(rows, device=rng_state.device)[:, None]
    quad = torch.arange(-(-columns // 4), device=rng_state.device)
    words = philox4x32(rng_state, row & WORD, quad, row >> 32)
    return words.flatten(1)[:, :columns] >= int(dropout_p * 2**32)
