"""Data sets that come with installed libraries: nothing is downloaded."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Table:
    """Tensors with a row for every example: what the columns of one row hold belongs together."""

    columns: tuple[torch.Tensor, ...]

    def __len__(self):
        return len(self.columns[0])

    def batches(self, batch_size, generator=None):
        """Tuples of the columns' rows, shuffled when a generator is given; the last batch may be smaller."""
        order = torch.randperm(len(self), generator=generator) if generator else torch.arange(len(self))
        for rows in order.split(batch_size):
            yield tuple(column[rows] for column in self.columns)


class Split(Table):
    """One part of a data set: inputs [count, ...] and targets [count]."""

    def __init__(self, inputs, targets):
        super().__init__((inputs, targets))

    @property
    def inputs(self):
        return self.columns[0]

    @property
    def targets(self):
        return self.columns[1]


def digits(seed=0, fractions=(0.7, 0.15, 0.15)):
    """scikit-learn's 1797 handwritten digits (Alpaydin and Kaynak, 1998), scaled from 8x8 to 28x28, values in [0, 1].

    Args:
        seed: of the split.
        fractions: of training, validation and test, which keep the classes' shares.

    Returns:
        (train, validation, test), each a `Split` of float32 inputs [count, 784] and int64 targets 0..9.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) <= 0:
        raise ValueError(f"digits: fractions must be positive and add up to 1, got {tuple(fractions)}")
    images, targets = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    inputs = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False).flatten(1)
    rows = np.arange(len(targets))
    train, rest = train_test_split(rows, train_size=fractions[0], stratify=targets, random_state=seed)
    share = fractions[1] / (fractions[1] + fractions[2])
    validation, test = train_test_split(rest, train_size=share, stratify=targets[rest], random_state=seed)
    return tuple(Split(inputs[part], torch.from_numpy(targets[part])) for part in (train, validation, test))


@dataclass
class Windows:
    """A text as pieces of `length` tokens, each with the tokens that follow: what a language model is trained on."""

    tokens: torch.Tensor  # int64 [count]
    length: int

    def __len__(self):
        return (len(self.tokens) - 1) // self.length

    def batches(self, batch_size, generator=None):
        """Batches of (inputs, targets), int64 [batch, length] each, shuffled when a generator is given."""
        count = len(self)
        inputs = self.tokens[: count * self.length].view(count, self.length)
        targets = self.tokens[1 : count * self.length + 1].view(count, self.length)
        yield from Split(inputs, targets).batches(batch_size, generator)


def python_documentation(fractions=(0.9, 0.05, 0.05)):
    """The help texts that every Python carries: (train, validation, test), three strings.

    Topics go whole into one of the three. Many topics quote others: a paragraph is kept where it comes first, so that
    none is in two parts.
    """
    from pydoc_data.topics import topics

    seen, texts = set(), []
    for name in sorted(topics):
        paragraphs = dict.fromkeys(topics[name].split("\n\n"))
        texts.append("\n\n".join(paragraph for paragraph in paragraphs if paragraph not in seen))
        seen.update(paragraphs)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    cuts = (round(len(texts) * fractions[0]), round(len(texts) * (fractions[0] + fractions[1])))
    parts = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]
    return tuple("\n\n".join(texts[i] for i in part if texts[i]) for part in parts)
