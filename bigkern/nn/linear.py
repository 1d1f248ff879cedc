"""Linear and LinearAct: torch.nn.Linear's parameters and initialisation, bigkern's kernel."""

import torch

from .. import functional as F
from ..ops.linear_act import ACTIVATIONS


class Linear(torch.nn.Linear):
    """torch.nn.Linear, computed by bigkern: the same arguments, initialisation and state_dict."""

    def forward(self, input):
        return F.linear(input, self.weight, self.bias)


class LinearAct(torch.nn.Linear):
    """A linear layer and its activation in one kernel: act(input @ weight.T + bias).

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear; so are initialisation and state_dict.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid" or "tanh".
    """

    def __init__(self, in_features, out_features, bias=True, activation="relu", device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        if activation not in ACTIVATIONS:
            raise ValueError(f"LinearAct: unknown activation {activation!r}; one of {', '.join(ACTIVATIONS)}")
        self.activation = activation

    def forward(self, input):
        return F.linear_act(input, self.weight, self.bias, self.activation)

    def extra_repr(self):
        return f"{super().extra_repr()}, activation={self.activation!r}"
