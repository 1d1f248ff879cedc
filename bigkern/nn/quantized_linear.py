"""QuantizedLinear: an nn.Linear whose weights are int8, and the one call that puts it in place of every nn.Linear."""

import torch

from ..ops.int8_linear import int8_linear
from ..ops.linear_act import ACTIVATIONS
from ..ops.quantize import quantize
from .linear import Linear, LinearAct
from .weight_only_linear import WeightOnlyLinear

REPLACED = (torch.nn.Linear, Linear, LinearAct)


class QuantizedLinear(torch.nn.Module):
    """A linear layer for inference with int8 weights, one scale per output feature; made by `from_float`.

    The input is rounded to int8 on the fly, row by row (see `bigkern.int8_linear`). Weights take a quarter of float32's
    memory. Gradients flow to the input; the layer itself is not trained: all its tensors are buffers.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear; dtype is bias's. A layer made this way is
            all zeros, ready for load_state_dict.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh", applied in the same kernel.

    Attributes:
        qweight: int8 [out_features, in_features].
        weight_scale: float32 [out_features]; stays in float32 when the module is cast to half precision.
        bias: [out_features] or None.
    """

    def __init__(self, in_features, out_features, bias=True, activation="none", device=None, dtype=None):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"QuantizedLinear: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        qweight = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("qweight", qweight)
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(cls, linear, activation="none"):
        """The layer that stands in for `linear`, an nn.Linear; its weights are rounded row by row.

        Raises:
            TypeError: linear is not an nn.Linear.
        """
        if not isinstance(linear, torch.nn.Linear):
            raise TypeError(f"QuantizedLinear.from_float: expected a torch.nn.Linear, got {type(linear).__name__}")
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls(linear.in_features, linear.out_features, False, activation, device="meta")
        layer.qweight, layer.weight_scale, _ = quantize(weight, axis=0)
        layer.bias = None if bias is None else bias.detach().clone()
        return layer.train(linear.training)

    @property
    def weight(self):
        """The floating weight that qweight stands for, computed anew at each access; for code that looks at it."""
        dtype = self.weight_scale.dtype if self.bias is None else self.bias.dtype
        return (self.qweight * self.weight_scale[:, None]).to(dtype)

    def forward(self, input):
        return int8_linear(input, self.qweight, self.weight_scale, self.bias, self.activation)

    def _apply(self, fn, recurse=True):
        precise = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype in (torch.float16, torch.bfloat16):
            self.weight_scale = precise.to(self.weight_scale.device)
        return self

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )


def quantize_linears(module, weight_only_bits=None, group_size=None):
    """Replaces every linear layer in `module` by one with quantized weights, in place, and returns the module.

    torch.nn.Linear, bigkern.nn.Linear and bigkern.nn.LinearAct are replaced; other subclasses may compute something
    else and are left alone. A layer that is used in several places stays one layer.

    Args:
        module: any torch.nn.Module; where it is itself a linear layer, its replacement is returned.
        weight_only_bits: None: QuantizedLinear, int8 weights and inputs. 8 or 4: WeightOnlyLinear, whose inputs stay
            floating.
        group_size: with weight_only_bits: neighbours of a row that share a scale; None: a whole row.

    Raises:
        ValueError: a layer has hooks, which its replacement would not run, or group_size does not divide its
            in_features, or comes without weight_only_bits.
    """
    if group_size is not None and weight_only_bits is None:
        raise ValueError("quantize_linears: group_size goes with weight_only_bits")
    replacements = {}

    def replacement(layer, name):
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            raise ValueError(f"quantize_linears: layer {name!r} has hooks, which its replacement would not run")
        if layer not in replacements:
            activation = getattr(layer, "activation", "none")
            if weight_only_bits is None:
                replacements[layer] = QuantizedLinear.from_float(layer, activation)
            else:
                replacements[layer] = WeightOnlyLinear.from_float(
                    layer, weight_only_bits, group_size, activation=activation
                )
        return replacements[layer]

    if type(module) in REPLACED:
        return replacement(module, "")
    for parent_name, parent in list(module.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children skips a layer's second name
            if type(child) in REPLACED:
                setattr(parent, name, replacement(child, f"{parent_name}.{name}".lstrip(".")))
    return module
