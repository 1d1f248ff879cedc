"""Rotation by position: input is [batch, heads, length, head_dim], cos and sin [1 or batch, positions, pairs]."""


def rotary_embedding_forward(input, cos, sin, position_ids, offset, interleaved):
    """(output,) of input's shape: pairs (x, y) turn to (x cos - y sin, y cos + x sin)."""
    return (_rotate(input, cos, sin, position_ids, offset, interleaved),)


def rotary_embedding_backward(grad_output, cos, sin, position_ids, offset, interleaved):
    """(grad_input,): the rotation by the negative angle."""
    return (_rotate(grad_output, cos, -sin, position_ids, offset, interleaved),)


def _rotate(input, cos, sin, position_ids, offset, interleaved):
    batch, _, length, _ = input.shape
    pairs, output = cos.shape[2], input.copy()
    places = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(pairs), slice(pairs, 2 * pairs))
    )
    for b in range(batch):
        for s in range(length):
            position = offset + s if position_ids is None else int(position_ids[b, s])
            if not 0 <= position < cos.shape[1]:
                raise IndexError(
                    f"rotary_embedding: position {position} is out of range for cos and sin of {cos.shape[1]} positions"
                )
            c, n = (table[b if len(table) > 1 else 0, position] for table in (cos, sin))
            x, y = (input[b, :, s, place] for place in places)
            output[b, :, s, places[0]] = x * c - y * n
            output[b, :, s, places[1]] = y * c + x * n
    return output
