"""Pooling of images."""

import torch

from ..ops.adaptive_avg_pool2d import adaptive_avg_pool2d
from ..ops.avg_pool2d import avg_pool2d
from ..ops.max_pool2d import max_pool2d


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`, computed by `bigkern.adaptive_avg_pool2d`."""

    def forward(self, input):
        return adaptive_avg_pool2d(input, self.output_size)


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d`, computed by `bigkern.avg_pool2d`."""

    def forward(self, input):
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, computed by `bigkern.max_pool2d`."""

    def forward(self, input):
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )
