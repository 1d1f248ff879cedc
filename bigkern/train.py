"""Training the documents' digits perceptron with bigkern's ops, beside the same network in plain PyTorch.

Both networks start from the same weights and see the same batches; their steps alternate, so that whatever else the
machine does meets both alike. Then the trained network is converted to INT8.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch

from . import functional
from .nn import quantize_linears


@dataclass
class Contestant:
    """A network in training: its loss function, its optimizer, and what was measured on the way."""

    name: str
    model: torch.nn.Module
    loss_function: object
    optimizer: torch.optim.Optimizer
    losses: list = field(default_factory=list)
    seconds: list = field(default_factory=list)

    def step(self, inputs, targets):
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_function(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(value)

    @property
    def median_step(self):
        """Seconds."""
        return statistics.median(self.seconds)


def adam_contestant(name, model, loss_function, learning_rate):
    # PyTorch's fused Adam on both sides: the difference that is measured lies in the ops.
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    return Contestant(name, model, loss_function, optimizer)


def train(contestants, train_split, validation_split, epochs, batch_size, seed, on_epoch=None, on_step=None):
    """Trains every contestant on the same shuffled batches, one step of each in turn.

    Args:
        on_epoch: called with (epoch, [validation accuracy of each contestant]) after every epoch.
        on_step: called without arguments after every batch.
    """
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for epoch in range(epochs):
        for contestant in contestants:
            contestant.model.train()
        for inputs, targets in train_split.batches(batch_size, generator):
            # Who goes first alternates too: the second finds the batch in the cache.
            for contestant in contestants if step % 2 == 0 else reversed(contestants):
                contestant.step(inputs, targets)
            step += 1
            if on_step:
                on_step()
        if on_epoch:
            on_epoch(epoch, [evaluate(contestant.model, validation_split)["accuracy"] for contestant in contestants])


@torch.no_grad()
def predict(model, split, batch_size=256):
    """The most probable class of each input, int64 [count]."""
    model.eval()
    return torch.cat([model(inputs).argmax(1) for inputs, _ in split.batches(batch_size)])


def evaluate(model, split):
    """Accuracy, and precision, recall and F1 averaged over the classes, each in [0, 1]."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predicted = predict(model, split)
    precision, recall, f1, _ = precision_recall_fscore_support(
        split.targets, predicted, average="macro", zero_division=0
    )
    accuracy = accuracy_score(split.targets, predicted)
    return {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def quantized(model):
    """A copy of `model` with every linear layer in INT8."""
    import copy

    return quantize_linears(copy.deepcopy(model)).eval()


def weight_bytes(model):
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def saved_bytes(model, loss_function, inputs, targets):
    """Bytes that autograd keeps for one backward pass, beside the parameters and the batch itself."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), inputs, targets)}
    storages = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = loss_function(model(inputs), targets)
    del loss
    return sum(storages.values())


def time_forward(models, inputs, rounds=300):
    """Median seconds of one forward pass of each model, the models taking turns."""
    seconds = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(rounds):
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(inputs)
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def bigkern_loss(logits, targets):
    return functional.cross_entropy(logits, targets)


def save_loss_curve(contestants, path):
    """A PNG with the training loss of every contestant and their difference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1))
    for contestant, style in zip(contestants, ("-", "--"), strict=False):
        top.plot(contestant.losses, style, label=contestant.name, linewidth=1)
    top.set_ylabel("cross-entropy (nats)")
    top.set_yscale("log")
    top.legend()
    if len(contestants) > 1:
        ours, theirs = contestants[0].losses, contestants[1].losses
        bottom.plot([abs(a - b) for a, b in zip(ours, theirs, strict=True)], linewidth=1)
    bottom.set_ylabel("|difference|")
    bottom.set_yscale("symlog", linthresh=1e-8)
    bottom.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
