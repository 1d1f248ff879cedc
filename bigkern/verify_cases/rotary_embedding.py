"""Cases of rotary_embedding."""

import torch

import bigkern

from .case import Case


def rotate_composed(input, cos, sin, interleaved=False, position_ids=None, offset=0):
    """The formula of bigkern.rotary_embedding as a PyTorch user would write it."""
    pairs = cos.shape[-1]
    if position_ids is None:
        cos, sin = (table[offset : offset + input.shape[2]] for table in (cos, sin))
    else:
        cos, sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)
    turned, rest = input[..., : 2 * pairs], input[..., 2 * pairs :]
    if interleaved:
        x, y = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((x * cos - y * sin, y * cos + x * sin), -1).flatten(-2)
    else:
        x, y = turned[..., :pairs], turned[..., pairs:]
        turned = torch.cat((x * cos - y * sin, y * cos + x * sin), -1)
    return torch.cat((turned, rest), -1)


def _rotary_embedding(name, shape=(2, 3, 7, 40), pairs=20, ids=False, **options):
    def inputs():
        angles = torch.rand(shape[2] + 5, pairs) * 6
        drawn = {"input": torch.randn(shape), "cos": angles.cos(), "sin": angles.sin()}
        return {**drawn, "position_ids": torch.randint(0, shape[2] + 5, (shape[0], shape[2]))} if ids else drawn

    return Case(
        "rotary_embedding",
        name,
        inputs,
        lambda **tensors: bigkern.rotary_embedding(**tensors, **options),
        lambda **tensors: rotate_composed(**tensors, **options),
        ("input",),
    )


ROTARY_EMBEDDING = [
    _rotary_embedding("half-split"),
    _rotary_embedding("interleaved", interleaved=True),
    _rotary_embedding("11 of 20 pairs, offset", pairs=11, offset=4),
    _rotary_embedding("interleaved, 11 of 20 pairs, position ids", pairs=11, ids=True, interleaved=True),
]
