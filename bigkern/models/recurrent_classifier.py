"""A classifier of sequences: an RNN, LSTM or GRU over their steps, and logits from the last state.

Sources: Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997); Cho et al., "Learning Phrase Representations using
RNN Encoder-Decoder" (2014).
"""

import torch

from .layers import Ours

KINDS = ("rnn", "lstm", "gru")


class RecurrentClassifier(torch.nn.Module):
    """One recurrent layer and the logits of its last output.

    Args:
        kind: "rnn" (tanh), "lstm" or "gru".
        features: of a step; hidden: width of the state; classes: how many there are to tell apart.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        sequences [batch, length, features] -> logits [batch, classes]
    """

    def __init__(self, kind="lstm", features=28, hidden=64, classes=10, layers=Ours):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"RecurrentClassifier: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.layers = layers
        self.recurrent = getattr(layers, kind.upper())(features, hidden, batch_first=True)
        self.output = layers.Linear(hidden, classes)
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.detach().split(hidden):  # each gate's own matrix keeps lengths
                    torch.nn.init.orthogonal_(gate)
        torch.nn.init.xavier_uniform_(self.output.weight)
        torch.nn.init.zeros_(self.output.bias)

    def forward(self, sequences):
        outputs, _ = self.recurrent(sequences)
        return self.output(outputs[:, -1])

    def loss(self, sequences, targets):
        """Mean cross-entropy, in nats; targets int64 [batch]."""
        return self.layers.cross_entropy(self(sequences), targets)
