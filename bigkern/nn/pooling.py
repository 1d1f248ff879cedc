"""Pooling of images."""

import torch

from ..ops.max_pool2d import max_pool2d


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, computed by `bigkern.max_pool2d`."""

    def forward(self, input):
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )
