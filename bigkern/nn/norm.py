"""Normalization over the last dimensions."""

import torch

from ..ops.layer_norm import layer_norm
from ..ops.rms_norm import rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by `bigkern.layer_norm`."""

    def forward(self, input):
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by `bigkern.rms_norm`."""

    def forward(self, x):
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)
