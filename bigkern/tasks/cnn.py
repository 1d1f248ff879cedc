"""A convolutional network on scikit-learn's handwritten digits."""

import click

from ..data import Split, digits
from ..models.cnn import CNN
from ..train import evaluate
from . import Task

OPTIONS = [
    click.Option(["--hidden"], type=click.IntRange(1), default=64, show_default=True, help="Fully connected width."),
]


def make(*, hidden=64) -> Task:
    """The documents' CNN."""
    train, validation, test = (Split(part.inputs.view(-1, 1, 28, 28), part.targets) for part in digits())
    return Task(
        name="cnn",
        config={"hidden": hidden},
        build=lambda kind: CNN(hidden=hidden, layers=kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        metric="accuracy",
        maximize=True,
        epochs=8,
        batch_size=32,
        learning_rate=1e-3,
        items=f"digits: {len(train)} to train on, {len(validation)} to validate, {len(test)} to test",
    )
