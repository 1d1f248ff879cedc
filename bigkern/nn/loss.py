"""Losses."""

import torch

from ..ops.binary_cross_entropy_with_logits import binary_cross_entropy_with_logits
from ..ops.cross_entropy import cross_entropy
from ..ops.kl_div import kl_div
from ..ops.linear_cross_entropy import linear_cross_entropy
from ..ops.mse_loss import mse_loss


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, computed by `bigkern.cross_entropy`."""

    def forward(self, input, target):
        return cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class MSELoss(torch.nn.MSELoss):
    """`torch.nn.MSELoss`, computed by `bigkern.mse_loss`."""

    def forward(self, input, target):
        return mse_loss(input, target, self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss`, computed by `bigkern.binary_cross_entropy_with_logits`."""

    def forward(self, input, target):
        return binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(torch.nn.KLDivLoss):
    """`torch.nn.KLDivLoss`, computed by `bigkern.kl_div`."""

    def forward(self, input, target):
        return kl_div(input, target, self.reduction, self.log_target)


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
