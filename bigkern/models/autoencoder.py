"""Autoencoders of pictures: one that squeezes them through a few numbers, and a variational one that can draw new ones.

Sources: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks" (2006); Kingma and
Welling, "Auto-Encoding Variational Bayes" (2014).
"""

import torch

from .layers import Ours


class Autoencoder(torch.nn.Module):
    """pixels -> hidden -> code -> hidden -> pixels, with ReLU in the hidden layers.

    Args:
        pixels, hidden, code: widths.
        variational: the code is drawn from a normal distribution that the encoder gives.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        pictures [batch, pixels], values 0 to 1 -> logits [batch, pixels]; their sigmoid are the pictures again.
    """

    def __init__(self, pixels=784, hidden=256, code=32, variational=False, layers=Ours):
        super().__init__()
        self.layers, self.variational, self.code = layers, variational, code
        self.encode_hidden = layers.LinearAct(pixels, hidden, activation="relu")
        self.encode_code = layers.Linear(hidden, 2 * code if variational else code)
        self.decode_hidden = layers.LinearAct(code, hidden, activation="relu")
        self.decode_pixels = layers.Linear(hidden, pixels)
        for layer in (self.encode_hidden, self.encode_code, self.decode_hidden, self.decode_pixels):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)

    def encode(self, pictures):
        """The code [batch, code]; variational: its mean and the logarithm of its variance, [batch, 2 * code]."""
        return self.encode_code(self.encode_hidden(pictures))

    def decode(self, code):
        """Logits of the pixels."""
        return self.decode_pixels(self.decode_hidden(code))

    def forward(self, pictures):
        code = self.encode(pictures)
        return self.decode(code[:, : self.code] if self.variational else code)

    def loss(self, pictures, noise=None):
        """Binary cross-entropy of the pixels, summed over a picture and averaged over the batch, in nats; variational:
        with the distance of the code's distribution from the normal one, the negative evidence lower bound.

        Args:
            noise: standard normal [batch, code]; None: drawn afresh. Only for the variational one.
        """
        encoded, divergence = self.encode(pictures), 0.0
        if self.variational:
            mean, log_variance = encoded.chunk(2, dim=1)
            noise = torch.randn_like(mean) if noise is None else noise
            encoded = mean + (0.5 * log_variance).exp() * noise
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(pictures)
        logits = self.decode(encoded)
        errors = self.layers.binary_cross_entropy_with_logits(logits, pictures, reduction="sum")
        return errors / len(pictures) + divergence

    @torch.no_grad()
    def draw(self, count, generator=None):
        """New pictures [count, pixels] from codes drawn from the normal distribution; for the variational one.

        Raises:
            ValueError: it is not variational: nothing is known of where its codes lie.
        """
        if not self.variational:
            raise ValueError("Autoencoder: only a variational one can draw")
        codes = torch.randn(count, self.code, generator=generator).to(self.decode_pixels.weight)
        return torch.sigmoid(self.decode(codes))
