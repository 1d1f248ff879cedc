"""Losses."""

import torch

from ..ops.cross_entropy import cross_entropy
from ..ops.linear_cross_entropy import linear_cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, computed by `bigkern.cross_entropy`."""

    def forward(self, input, target):
        return cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # PyTorch 2.13 has it

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """`torch.nn.LinearCrossEntropyLoss`, computed by `bigkern.linear_cross_entropy`: no logits are stored."""

        def forward(self, input, target):
            shape = (self.num_classes, *self.out_features)
            bias = self.linear.bias
            return linear_cross_entropy(
                input,
                self.linear.weight.view(*shape, self.linear.in_features),
                target,
                linear_bias=None if bias is None else bias.view(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )
