"""Other libraries' ways of doing what our ops do: each is timed where it is installed, and left out where it is not.

A peer takes the inputs of a `Case` by name; those that can be differentiated are `WithBackward`. Nothing here is
imported before it is asked for.
"""

import importlib
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F

from .common import WithBackward


def _load(module: str, *names: str):
    """The named attributes of a module, or None where this machine lacks it or what it needs."""
    # A peer that is half installed fails in ways of its own: OSError for a library, RuntimeError for a driver.
    with suppress(ImportError, OSError, RuntimeError, AttributeError):
        found = importlib.import_module(module)
        return [getattr(found, name) for name in names]
    return None


def attention(is_causal: bool, enable_gqa: bool) -> dict[str, WithBackward]:
    """PyTorch's own kernels one by one; eager is the one that it picks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        return {}

    def forced(backend):
        def call(query, key, value):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=enable_gqa)

        return WithBackward(call)

    return {"cuDNN": forced(SDPBackend.CUDNN_ATTENTION), "FlashAttention-2": forced(SDPBackend.FLASH_ATTENTION)}


def linear_act(activation: str) -> dict[str, Callable]:
    """cuBLASLt's epilogue."""
    if activation not in ("relu", "gelu_tanh") or not torch.cuda.is_available():
        return {}
    use_gelu = activation != "relu"
    return {"cuBLASLt": lambda input, weight, bias: torch._addmm_activation(bias, input, weight.t(), use_gelu=use_gelu)}


def linear_cross_entropy() -> dict[str, WithBackward]:
    """PyTorch's own in chunks, from 2.13 on; Liger and Apple's cut-cross-entropy."""
    peers = {}
    if loaded := _load("torch.nn", "LinearCrossEntropyOptions"):
        (options,) = loaded
        peers["chunked"] = WithBackward(
            lambda input, linear_weight, target: F.linear_cross_entropy(input, linear_weight, target, options=options())
        )
    if not torch.cuda.is_available():
        return peers
    if loaded := _load("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"):
        (liger,) = loaded
        peers["Liger"] = WithBackward(lambda input, linear_weight, target: liger(input, linear_weight, target))
    if loaded := _load("cut_cross_entropy", "linear_cross_entropy"):
        (cut,) = loaded
        peers["CCE"] = WithBackward(lambda input, linear_weight, target: cut(input, linear_weight, target))
    return peers


def cross_entropy() -> dict[str, WithBackward]:
    """Liger and QuACK. Liger's forward writes the gradient into logits that need one."""
    peers = {}
    if not torch.cuda.is_available():
        return peers
    if loaded := _load("liger_kernel.transformers.functional", "liger_cross_entropy"):
        (liger,) = loaded
        peers["Liger"] = WithBackward(lambda input, target: liger(input, target), overwrites=("input",))
    if loaded := _load("quack", "cross_entropy"):
        (quack,) = loaded
        peers["QuACK"] = WithBackward(lambda input, target: quack(input, target, reduction="mean"))
    return peers


def layer_norm() -> dict[str, WithBackward]:
    """Liger."""
    if torch.cuda.is_available() and (loaded := _load("liger_kernel.transformers.functional", "liger_layer_norm")):
        (liger,) = loaded
        return {"Liger": WithBackward(lambda input, weight, bias: liger(input, weight, bias, 1e-5))}
    return {}


def rms_norm() -> dict[str, WithBackward]:
    """Liger, not in place, and QuACK."""
    peers = {}
    if not torch.cuda.is_available():
        return peers
    if loaded := _load("liger_kernel.transformers.functional", "liger_rms_norm"):
        (liger,) = loaded
        peers["Liger"] = WithBackward(lambda input, weight: liger(input, weight, 1e-6, in_place=False))
    if loaded := _load("quack", "rmsnorm"):
        (quack,) = loaded
        peers["QuACK"] = WithBackward(lambda input, weight: quack(input, weight, eps=1e-6))
    return peers


def quantize() -> dict[str, Callable]:
    """bitsandbytes, which takes float16 rows only."""
    if torch.cuda.is_available() and (loaded := _load("bitsandbytes.functional", "int8_vectorwise_quant")):
        (vectorwise,) = loaded
        return {"bitsandbytes": lambda input: vectorwise(input)[:2]}
    return {}


def int8_module(weight, bias):
    """torchao's dynamically quantized linear layer, compiled as its authors advise; None where it is not installed."""
    if not weight.is_cuda:
        return None
    loaded = _load("torchao.quantization", "quantize_", "Int8DynamicActivationInt8WeightConfig")
    if not loaded:
        return None
    quantize_, config = loaded
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    quantize_(layer, config())
    return torch.compile(layer)
