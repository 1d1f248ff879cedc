"""WeightOnlyLinear: an nn.Linear whose weights are kept in int8 or int4."""

import torch

from ..ops.linear_act import ACTIVATIONS
from ..ops.weight_only_linear import BITS, dequantize_weight, quantize_weight, weight_only_linear


class WeightOnlyLinear(torch.nn.Module):
    """A linear layer with int8 or int4 weights and a floating input; made by `from_float`.

    Gradients flow to the input; the layer itself is not trained: all its tensors are buffers.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear; dtype is bias's. A layer made this way is
            all zeros, ready for load_state_dict.
        bits: 4 or 8.
        group_size: neighbours of a row that share a scale; it must divide in_features. None: a whole row.
        symmetric: False adds a zero point to every group.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh", applied in the same kernel.

    Attributes:
        qweight: int8 [out_features, in_features], or uint8 [out_features, ceil(in_features / 2)] for 4 bits.
        weight_scale: float32 [out_features, groups]; stays in float32 when the module is cast to half precision.
        weight_zero_point: int32 [out_features, groups], or None.
        bias: [out_features] or None.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        bits=4,
        group_size=None,
        symmetric=True,
        activation="none",
        device=None,
        dtype=None,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"WeightOnlyLinear: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
        if bits not in BITS:
            raise ValueError(f"WeightOnlyLinear: bits must be 4 or 8, got {bits}")
        group_size = in_features if group_size is None else group_size
        if group_size < 1 or in_features % group_size:
            raise ValueError(f"WeightOnlyLinear: group_size {group_size} does not divide in_features, {in_features}")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size, self.activation = bits, group_size, activation
        width, kind = (in_features, torch.int8) if bits == 8 else ((in_features + 1) // 2, torch.uint8)
        scales = (out_features, in_features // group_size)
        self.register_buffer("qweight", torch.zeros(out_features, width, dtype=kind, device=device))
        self.register_buffer("weight_scale", torch.ones(scales, dtype=torch.float32, device=device))
        zero_point = None if symmetric else torch.zeros(scales, dtype=torch.int32, device=device)
        self.register_buffer("weight_zero_point", zero_point)
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(cls, linear, bits=4, group_size=None, symmetric=True, activation="none"):
        """The layer that stands in for `linear`, an nn.Linear; its weights are rounded group by group.

        Raises:
            TypeError: linear is not an nn.Linear.
            ValueError: as `bigkern.quantize_weight`.
        """
        if not isinstance(linear, torch.nn.Linear):
            raise TypeError(f"WeightOnlyLinear.from_float: expected a torch.nn.Linear, got {type(linear).__name__}")
        quantized = quantize_weight(linear.weight, bits, group_size, symmetric)
        features = linear.in_features, linear.out_features
        layer = cls(*features, False, bits, group_size, symmetric, activation, device="meta")
        layer.qweight, layer.weight_scale, layer.weight_zero_point = quantized
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer.train(linear.training)

    @property
    def weight(self):
        """The floating weight that qweight stands for, computed anew at each access; for code that looks at it."""
        dtype = self.weight_scale.dtype if self.bias is None else self.bias.dtype
        return dequantize_weight(self.qweight, self.weight_scale, self.weight_zero_point, self.in_features, dtype)

    def forward(self, input):
        weights = self.qweight, self.weight_scale, self.weight_zero_point
        return weight_only_linear(input, *weights, self.bias, self.activation)

    def _apply(self, fn, recurse=True):
        precise = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype in (torch.float16, torch.bfloat16):
            self.weight_scale = precise.to(self.weight_scale.device)
        return self

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, group_size={self.group_size}, symmetric={self.weight_zero_point is None}, "
            f"activation={self.activation!r}"
        )
