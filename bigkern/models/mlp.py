"""The multilayer perceptron: fully connected layers with an activation between them."""

import torch

from ..nn import LinearAct


class MLP(torch.nn.Sequential):
    """Fully connected layers; the last one gives logits (softmax belongs to the loss).

    Args:
        sizes: the width of every layer, input first: (784, 64, 10) is the digits classifier.
        activation: of every layer but the last, one of those of `bigkern.linear_act`.

    Shape:
        input [..., sizes[0]] -> logits [..., sizes[-1]]
    """

    def __init__(self, sizes=(784, 64, 10), activation="relu"):
        if len(sizes) < 2:
            raise ValueError(f"MLP: sizes must name an input and an output width, got {tuple(sizes)}")
        last = len(sizes) - 2
        super().__init__(
            *(
                LinearAct(sizes[i], sizes[i + 1], activation="none" if i == last else activation)
                for i in range(len(sizes) - 1)
            )
        )
        self.sizes = tuple(sizes)
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self):
        """Glorot-uniform weights and zero biases, as the documents' model has them."""
        for layer in self:
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


def plain_pytorch_twin(model: MLP) -> torch.nn.Sequential:
    """The same network in torch.nn, with a copy of `model`'s weights: what its user would have had without bigkern."""
    if model.activation != "relu":
        raise ValueError(f"plain_pytorch_twin: only relu networks have one, got {model.activation}")
    layers = []
    for layer in model:
        linear = torch.nn.Linear(layer.in_features, layer.out_features)
        linear.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()})
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])
