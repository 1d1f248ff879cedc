"""attention against F.scaled_dot_product_attention, which on a CPU is a flash attention too."""

import torch
import torch.nn.functional as F

import bigkern

from . import peers
from .common import Case

OPS = ("attention",)


def _case(
    name,
    batch,
    heads,
    len_q,
    kv_heads=None,
    len_k=None,
    causal=False,
    dtype=torch.float32,
    train=True,
    head_dim=64,
    target="",
    window=None,
):
    kv_heads, len_k = kv_heads or heads, len_k or len_q
    options = {"is_causal": causal, "enable_gqa": kv_heads != heads}
    ours, theirs, pairs = options, options, len_q * len_k * (0.5 if causal else 1)
    if window is not None:  # PyTorch has none: a dense mask, which costs the whole matrix
        ours = {**options, "window_size": (window, 0)}
        visible = torch.ones(len_q, len_k, dtype=torch.bool)
        theirs = {"attn_mask": visible.tril() & ~visible.tril(-window - 1), "enable_gqa": kv_heads != heads}
        pairs = len_q * (window + 1)

    def inputs(device):
        query = torch.randn(batch, heads, len_q, head_dim, device=device).to(dtype)
        key, value = (torch.randn(batch, kv_heads, len_k, head_dim, device=device).to(dtype) for _ in range(2))
        return {"query": query, "key": key, "value": value}

    dtype_name = str(dtype).removeprefix("torch.")
    flops = 4 * batch * heads * pairs * head_dim
    nbytes = 2 * batch * head_dim * (heads * len_q + kv_heads * len_k) * dtype.itemsize
    return Case(
        f"{name} {dtype_name}",
        inputs,
        lambda query, key, value: bigkern.attention(query, key, value, **ours),
        lambda query, key, value: F.scaled_dot_product_attention(query, key, value, **_on_device(theirs, query)),
        peers={} if window is not None else peers.attention(**options),
        flops=flops,
        bytes=nbytes,
        peak=dtype_name,
        gradients=("query", "key", "value") if train else (),
        train_flops=3.5 * flops,  # the backward has five products where the forward has two
        train_bytes=3 * nbytes,
        target=target,
    )


def _on_device(options, tensor):
    return {name: option.to(tensor.device) if name == "attn_mask" else option for name, option in options.items()}


CASES = [
    _case("1x12x512x64", 1, 12, 512),
    _case("2x8x1024x64 causal", 2, 8, 1024, causal=True),
    _case("8x12x128x64", 8, 12, 128),
    _case("1x32/8x256x64 causal", 1, 32, 256, kv_heads=8, causal=True),
    _case("decode 4x32/8, 1024 keys", 4, 32, 1, kv_heads=8, len_k=1024, train=False),
    _case("1x8x4096x64 causal, window 256", 1, 8, 4096, causal=True, window=256),
    _case("1x12x512x64", 1, 12, 512, dtype=torch.bfloat16),
]

_HALF = {"dtype": torch.bfloat16, "head_dim": 128}
_FULL_TARGET = "H100: FA3 648, cuDNN 595, FA2 370 TFLOP/s forward; FA3 561 backward"
_CAUSAL_TARGET = "H100: FA3 616, cuDNN 539, FA2 335 TFLOP/s forward"

GPU_CASES = [
    _case("1x16x16384x128", 1, 16, 16384, target=_FULL_TARGET, **_HALF),
    _case("1x16x16384x128 causal", 1, 16, 16384, causal=True, target=_CAUSAL_TARGET, **_HALF),
    _case("4x16x4096x128", 4, 16, 4096, **_HALF),
    _case("4x16x4096x128 causal", 4, 16, 4096, causal=True, **_HALF),
    _case("2x32/8x4096x128 causal", 2, 32, 4096, kv_heads=8, causal=True, **_HALF),
    _case("1x16x16384x128 causal, window 1024", 1, 16, 16384, causal=True, window=1024, **_HALF),
    _case("16x12x512x64", 16, 12, 512, dtype=torch.bfloat16),
    _case("4x16x4096x64 causal", 4, 16, 4096, causal=True, dtype=torch.float16),
    _case("3x7x1021x80", 3, 7, 1021, dtype=torch.bfloat16, head_dim=80),
    _case("2x8x1024x64", 2, 8, 1024),
    _case("decode 32x32/8, 8192 keys x128", 32, 32, 1, kv_heads=8, len_k=8192, train=False, **_HALF),
]
TINY_CASES = [
    _case("1x2x40x16 causal", 1, 2, 40, causal=True, dtype=torch.float16, head_dim=16),
]
