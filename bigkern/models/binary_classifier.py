"""A yes-or-no classifier of a table's rows: the documents' 64-64-1 network, and their sigmoid unit trained by plain
gradient descent on the squared error."""

import torch

from .layers import Ours


class BinaryClassifier(torch.nn.Module):
    """Hidden ReLU layers and one logit.

    Args:
        features: columns of the table.
        hidden: widths of the hidden layers; () leaves a single sigmoid unit.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        [batch, features] -> logits [batch]; the probability of "yes" is their sigmoid.
    """

    def __init__(self, features, hidden=(64, 64), layers=Ours):
        super().__init__()
        self.layers = layers
        widths = (features, *hidden)
        self.hidden = torch.nn.Sequential(
            *(layers.LinearAct(widths[i], widths[i + 1], activation="relu") for i in range(len(hidden)))
        )
        self.output = layers.Linear(widths[-1], 1)
        for layer in self.hidden:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.xavier_uniform_(self.output.weight)
        torch.nn.init.zeros_(self.output.bias)

    def forward(self, rows):
        return self.output(self.hidden(rows))[:, 0]

    def loss(self, rows, targets):
        """Mean binary cross-entropy, in nats; targets are 0.0 or 1.0, [batch]."""
        return self.layers.binary_cross_entropy_with_logits(self(rows), targets)

    def squared_error(self, rows, targets):
        """Mean squared error of the probabilities: the documents' churn example."""
        return self.layers.mse_loss(torch.sigmoid(self(rows)), targets)
