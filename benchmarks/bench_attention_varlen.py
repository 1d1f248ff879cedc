"""attention_varlen against PyTorch's attention of the same sequences, padded and masked."""

import torch
import torch.nn.functional as F

import bigkern

from .common import Case

OPS = ("attention_varlen",)


def _case(name, lens, heads, causal=False, dtype=torch.float32, head_dim=64):
    longest, total = max(lens), sum(lens)
    starts = torch.tensor([0, *lens]).cumsum(0).int()

    def inputs(device):
        tensors = {n: torch.randn(total, heads, head_dim, device=device).to(dtype) for n in ("query", "key", "value")}
        # Where each token stands in the padded batch.
        places = torch.cat([b * longest + torch.arange(length) for b, length in enumerate(lens)])
        visible = (torch.arange(longest) < torch.tensor(lens)[:, None])[:, None, None]
        if causal:
            visible = visible & torch.ones(longest, longest, dtype=torch.bool).tril()
        return {**tensors, "starts": starts.to(device), "places": places.to(device), "visible": visible.to(device)}

    def ours(query, key, value, starts, places, visible):
        return bigkern.attention_varlen(query, key, value, starts, starts, longest, longest, causal)

    def eager(query, key, value, starts, places, visible):
        padded = (
            torch.zeros(len(lens) * longest, heads, head_dim, dtype=dtype, device=tensor.device)
            .index_copy(0, places, tensor)
            .view(len(lens), longest, heads, head_dim)
            .transpose(1, 2)
            for tensor in (query, key, value)
        )
        output = F.scaled_dot_product_attention(*padded, visible)
        return output.transpose(1, 2).flatten(0, 1)[places]

    flops = 4 * heads * head_dim * sum(length * length for length in lens) * (0.5 if causal else 1)
    nbytes = 4 * total * heads * head_dim * dtype.itemsize
    return Case(
        f"{name} {str(dtype).removeprefix('torch.')}",
        inputs,
        ours,
        eager,
        flops=flops,
        bytes=nbytes,
        peak=str(dtype).removeprefix("torch."),
        gradients=("query", "key", "value"),
        train_flops=3.5 * flops,  # the backward has five products where the forward has two
        train_bytes=3 * nbytes,
    )


_MIXED = (512, 37, 128, 300, 64, 9, 201, 77)
CASES = [
    _case("8 sequences of 9 to 512, 8x64", _MIXED, 8),
    _case("8 sequences of 9 to 512, 8x64 causal", _MIXED, 8, causal=True),
    _case("8 sequences of 9 to 512, 8x64", _MIXED, 8, dtype=torch.bfloat16),
]
_LONG = tuple(16 * length for length in _MIXED)
GPU_CASES = [
    _case("8 sequences of 144 to 8192, 16x128", _LONG, 16, dtype=torch.bfloat16, head_dim=128),
    _case("8 sequences of 144 to 8192, 16x128 causal", _LONG, 16, causal=True, dtype=torch.bfloat16, head_dim=128),
]
TINY_CASES = [
    _case("3 sequences of 3 to 20, 2x16 causal", (20, 3, 9), 2, causal=True, dtype=torch.float16, head_dim=16)
]
