"""Batch normalization, alone and with a residual and an activation."""

import torch

from ..ops.batch_norm_act import ACTIVATIONS, batch_norm_act


class _BatchNorm:
    """forward of torch's batch normalization modules, for classes that inherit from one of them."""

    def forward(self, input):
        return self._normalize(input)

    def _normalize(self, input, residual=None, activation="none"):
        self._check_input_dim(input)
        tracks = self.training and self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        # When training, running statistics are passed only to be updated.
        passed = not self.training or self.track_running_stats
        return batch_norm_act(
            input,
            self.running_mean if passed else None,
            self.running_var if passed else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            residual,
            activation,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by `bigkern.batch_norm_act`."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by `bigkern.batch_norm_act`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by `bigkern.batch_norm_act`."""


class BatchNormAct2d(BatchNorm2d):
    """act(batch_norm(input) + residual) in one pass: what stands after each convolution of a residual network.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as `torch.nn.BatchNorm2d`, whose
            state_dict this module has.
        activation: "relu" or "none".

    Raises:
        ValueError: activation is neither.
    """

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        activation="relu",
        device=None,
        dtype=None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if activation not in ACTIVATIONS:
            raise ValueError(f"BatchNormAct2d: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation

    def forward(self, input, residual=None):
        """input, residual: [batch, num_features, height, width]; residual may be None."""
        return self._normalize(input, residual, self.activation)

    def extra_repr(self):
        return f"{super().extra_repr()}, activation={self.activation}"
