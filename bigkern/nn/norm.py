"""Normalization of each sample: over its last dimensions, or over groups of its channels."""

import torch

from ..ops.group_norm import group_norm
from ..ops.layer_norm import layer_norm
from ..ops.rms_norm import rms_norm


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by `bigkern.group_norm`."""

    def forward(self, input):
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by `bigkern.layer_norm`."""

    def forward(self, input):
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by `bigkern.rms_norm`."""

    def forward(self, x):
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)
