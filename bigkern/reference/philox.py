"""Philox4x32-10, the counter-based random generator that dropout uses: the same four words from the same counter and
key on every backend, so that the backward pass regenerates a mask instead of storing it.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

import numpy as np

from .array_module import array_module

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# The golden ratio and sqrt(3) - 1, in units of 2^-32, step the key from round to round.
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF


def philox4x32(counter, key):
    """Four arrays of uint32 from four broadcastable counter words and two key words."""
    xp = array_module(*counter)
    c0, c1, c2, c3 = xp.broadcast_arrays(*(xp.asarray(word, np.uint64) for word in counter))
    k0, k1 = (int(word) for word in key)
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        high_0, low_0 = product_0 >> np.uint64(32), product_0 & np.uint64(WORD)
        high_1, low_1 = product_1 >> np.uint64(32), product_1 & np.uint64(WORD)
        c0, c1, c2, c3 = high_1 ^ c1 ^ np.uint64(k0), low_1, high_0 ^ c3 ^ np.uint64(k1), low_0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def dropout_keep(rng_state, dropout_p, batch, heads, len_q, len_k):
    """[batch, heads, len_q, len_k] of booleans: True where dropout keeps the probability.

    rng_state is (seed, offset). One call of the generator draws the four words of four neighbouring keys; the counter
    is (key index // 4, query index, batch index * heads + head index, offset), the key is the seed.
    """
    xp = array_module(rng_state)
    seed, offset = int(rng_state[0]), int(rng_state[1])
    head_index = xp.arange(batch * heads).reshape(batch, heads, 1, 1)
    query_index = xp.arange(len_q)[:, None]
    key_quad = xp.arange(-(-len_k // 4))
    words = philox4x32((key_quad, query_index, head_index, offset & WORD), (seed & WORD, seed >> 32 & WORD))
    words = xp.stack(words, -1).reshape(batch, heads, len_q, 4 * len(key_quad))[..., :len_k]
    return words >= np.uint64(dropout_p * 2**32)


def dropout_keep_rows(rng_state, dropout_p, rows, columns):
    """[rows, columns] of booleans: True where dropout keeps an element of a matrix.

    One call of the generator draws the four words of four neighbouring columns; the counter is (lower word of the row
    index, column index // 4, upper word of the row index, offset), the key is the seed.
    """
    xp = array_module(rng_state)
    seed, offset = int(rng_state[0]), int(rng_state[1])
    row = xp.arange(rows)[:, None]
    quad = xp.arange(-(-columns // 4))
    words = philox4x32((row & WORD, quad, row >> 32, offset & WORD), (seed & WORD, seed >> 32 & WORD))
    return xp.stack(words, -1).reshape(rows, 4 * len(quad))[:, :columns] >= np.uint64(dropout_p * 2**32)
