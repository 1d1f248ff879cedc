"""A convolutional classifier of small pictures: convolution, ReLU and pooling, twice, then two fully connected layers.

Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), with ReLU and maximum pooling.
"""

import torch

from .layers import Ours


class CNN(torch.nn.Module):
    """Two convolutions of 3x3, each with ReLU and a 2x2 maximum, a hidden layer and the logits.

    Args:
        image: height and width in pixels, divisible by 4.
        channels: of the pictures; classes: how many there are to tell apart.
        widths: channels after each convolution; hidden: width of the fully connected layer.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        images [batch, channels, image, image] -> logits [batch, classes]
    """

    def __init__(self, image=28, channels=1, classes=10, widths=(16, 32), hidden=64, layers=Ours):
        super().__init__()
        if image % 4:
            raise ValueError(f"CNN: the image's side must be divisible by 4, got {image}")
        self.image, self.channels, self.layers = image, channels, layers
        self.conv_1 = layers.Conv2dAct(channels, widths[0], 3, padding=1, activation="relu")
        self.conv_2 = layers.Conv2dAct(widths[0], widths[1], 3, padding=1, activation="relu")
        self.pool = layers.MaxPool2d(2)
        self.hidden = layers.LinearAct(widths[1] * (image // 4) ** 2, hidden, activation="relu")
        self.output = layers.Linear(hidden, classes)
        for layer in (self.conv_1, self.conv_2, self.hidden, self.output):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)

    def forward(self, images):
        expected = (self.channels, self.image, self.image)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"CNN: images must be [batch, {', '.join(map(str, expected))}], got {tuple(images.shape)}")
        x = self.pool(self.conv_2(self.pool(self.conv_1(images))))
        return self.output(self.hidden(x.flatten(1)))

    def loss(self, images, targets):
        """Mean cross-entropy, in nats; targets int64 [batch]."""
        return self.layers.cross_entropy(self(images), targets)
