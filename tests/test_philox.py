import numpy as np
import pytest

from bigkern.reference.philox import dropout_keep, philox4x32

# The known answers of Random123 (kat_vectors: philox4x32, 10 rounds).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    words = philox4x32(counter, key)
    assert tuple(int(word) for word in words) == answer
    assert all(word.dtype == np.uint32 for word in words)


def test_counters_broadcast():
    first, second = np.arange(3), np.arange(2)[:, None]
    words = philox4x32((first, second, 5, 6), (7, 8))
    for i in range(2):
        for j in range(3):
            alone = philox4x32((j, i, 5, 6), (7, 8))
            assert [word[i, j] for word in words] == list(alone)


def test_an_element_has_the_word_of_its_position():
    keep = dropout_keep(np.array([(3 << 32) + 9, 11]), 0.5, batch=2, heads=3, len_q=4, len_k=6)
    for batch, head, query, key in ((0, 0, 0, 0), (1, 2, 3, 5), (1, 0, 2, 4), (0, 1, 3, 3)):
        word = philox4x32((key // 4, query, batch * 3 + head, 11), (9, 3))[key % 4]
        assert keep[batch, head, query, key] == (word >= 2**31)
