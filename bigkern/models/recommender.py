"""Two recommenders: matrix factorisation of ratings, and a network that predicts clicks.

Sources: Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems" (2009); Cheng et al.,
"Wide & Deep Learning for Recommender Systems" (2016).
"""

import torch

from .layers import Ours


class MatrixFactorization(torch.nn.Module):
    """rating = mean + bias of the user + bias of the item + user . item

    Args:
        users, items: how many there are.
        rank: of the vectors.
        mean: of all ratings; a buffer.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        users, items int64 [batch] -> ratings [batch]
    """

    def __init__(self, users, items, rank=16, mean=0.0, layers=Ours):
        super().__init__()
        self.layers = layers
        self.user_vectors, self.item_vectors = layers.Embedding(users, rank), layers.Embedding(items, rank)
        self.user_biases, self.item_biases = layers.Embedding(users, 1), layers.Embedding(items, 1)
        self.register_buffer("mean", torch.tensor(float(mean)))
        for table in (self.user_vectors, self.item_vectors):
            torch.nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_biases, self.item_biases):
            torch.nn.init.zeros_(table.weight)

    def forward(self, users, items):
        product = (self.user_vectors(users) * self.item_vectors(items)).sum(1)
        return self.mean + self.user_biases(users)[:, 0] + self.item_biases(items)[:, 0] + product

    def loss(self, users, items, ratings):
        """Mean squared error."""
        return self.layers.mse_loss(self(users, items), ratings)

    @torch.no_grad()
    def recommend(self, user, count=10, seen=()):
        """The items that `user` would rate highest: (items int64 [count], ratings [count]), without those `seen`."""
        items = torch.arange(self.item_vectors.num_embeddings, device=self.mean.device)
        ratings = self(torch.full_like(items, user), items)
        ratings[torch.as_tensor(list(seen), dtype=torch.int64, device=ratings.device)] = float("-inf")
        best = ratings.topk(min(count, len(items) - len(set(seen))))
        return best.indices, best.values


class ClickNetwork(torch.nn.Module):
    """The probability of a click: a vector for each category, and a perceptron on all of them and the numbers.

    Args:
        categories: how many values each categorical feature has.
        numbers: how many numerical features there are.
        rank: of the categories' vectors.
        hidden: widths of the perceptron's hidden layers.
        layers: what it is made of.

    Shape:
        categories int64 [batch, features], numbers [batch, numbers] -> logits [batch]
    """

    def __init__(self, categories, numbers, rank=8, hidden=(64, 32), layers=Ours):
        super().__init__()
        self.layers = layers
        starts = torch.tensor([0, *categories[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        # One table for all features: one lookup for a whole batch.
        self.vectors = layers.Embedding(sum(categories), rank)
        widths = (rank * len(categories) + numbers, *hidden)
        self.perceptron = torch.nn.Sequential(
            *(layers.LinearAct(widths[i], widths[i + 1], activation="relu") for i in range(len(hidden)))
        )
        self.output = layers.Linear(widths[-1], 1)
        torch.nn.init.normal_(self.vectors.weight, std=0.05)

    def forward(self, categories, numbers):
        vectors = self.vectors(categories + self.starts).flatten(1)
        return self.output(self.perceptron(torch.cat((vectors, numbers), 1)))[:, 0]

    def loss(self, categories, numbers, clicks):
        """Mean binary cross-entropy, in nats; clicks are 0.0 or 1.0."""
        return self.layers.binary_cross_entropy_with_logits(self(categories, numbers), clicks)
