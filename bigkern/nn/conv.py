"""Convolutions of images: torch.nn's parameters, initialisation and padding modes, bigkern's kernels."""

import torch

from .. import functional as F
from ..ops.conv2d import ACTIVATIONS


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d, computed by bigkern: the same arguments, initialisation and state_dict."""

    def _conv_forward(self, input, weight, bias):
        return self._padded_conv(input, weight, bias, "none")

    def _padded_conv(self, input, weight, bias, activation):
        padding = self.padding
        if self.padding_mode != "zeros":  # as in PyTorch: the border is made before the convolution
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        options = (self.stride, padding, self.dilation, self.groups)
        if activation == "none":
            return F.conv2d(input, weight, bias, *options)
        return F.conv2d_act(input, weight, bias, *options, activation)


class Conv2dAct(Conv2d):
    """A convolution and its activation in one kernel.

    Args:
        in_channels, ..., dtype: as in torch.nn.Conv2d; so are initialisation and state_dict.
        activation: "none" or "relu".
    """

    def __init__(self, *args, activation="relu", **kwargs):
        super().__init__(*args, **kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"Conv2dAct: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
        self.activation = activation

    def _conv_forward(self, input, weight, bias):
        return self._padded_conv(input, weight, bias, self.activation)

    def extra_repr(self):
        return f"{super().extra_repr()}, activation={self.activation!r}"


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, computed by bigkern: the same arguments, initialisation and state_dict."""

    def forward(self, input, output_size=None):
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        options = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(input, self.weight, self.bias, *options)
