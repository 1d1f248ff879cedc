"""What `bigkern train` trains: a model, the data it learns from, its loss, and how good it is.

One file a task, with a function `make(**options) -> Task`; its options are those of the command line.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# name -> what `bigkern train --help` says of it. The order is that of the help.
TASKS = {
    "binary_classifier": "Yes or no from the columns of a table: breast cancer, or a CSV of yours.",
    "cnn": "A convolutional network on scikit-learn's handwritten digits.",
    "recurrent": "The digits read row by row by an RNN, LSTM or GRU, with RMSprop.",
    "vit": "A vision transformer on scikit-learn's handwritten digits.",
    "gpt": "Pre-train a language model on Python's own documentation, or on a text of yours, and let it write.",
    "autoencoder": "Digits squeezed through a few numbers and back; --variational draws new ones.",
    "recommender": "Ratings by matrix factorisation, or clicks by a network; a MovieLens file of yours.",
}


@dataclass
class Task:
    """Everything that a run of one model needs.

    Args:
        name: of the task and of its file.
        config: what the model is made from: a checkpoint of another config is refused.
        build: makes the model out of `layers.Ours` or `layers.Plain`.
        train, validation, test: data with len() and batches(batch_size, generator=None).
        loss: of (model, batch): a tensor of one element, a mean over the batch.
        evaluate: of (model, data): metrics by name; called in eval mode without gradients.
        metric, maximize: the one that says which epoch was best.
        epochs and all below: defaults of the command line.
        items: what the command says of its data, "1,257 images to train on, ...".
        afterwards: called with (model, folder, console) after training: files and samples to look at.
        label: what a recorded result is called where a task has several forms; "": the name.
    """

    name: str
    config: dict
    build: Callable[[type], torch.nn.Module]
    train: object
    validation: object
    test: object
    loss: Callable
    evaluate: Callable[[torch.nn.Module, object], dict]
    metric: str = "loss"
    maximize: bool = False
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str = "adam"
    momentum: float = 0.9  # of sgd
    schedule: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    items: str = ""
    afterwards: Callable | None = None
    label: str = ""
