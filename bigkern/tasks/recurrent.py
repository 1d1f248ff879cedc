"""Handwritten digits read row by row by an RNN, LSTM or GRU."""

import click

from ..data import Split, digits
from ..models.recurrent_classifier import KINDS, RecurrentClassifier
from ..train import evaluate
from . import Task

OPTIONS = [
    click.Option(["--kind"], type=click.Choice(KINDS), default="lstm", show_default=True),
    click.Option(["--hidden"], type=click.IntRange(1), default=64, show_default=True, help="Width of the state."),
]


def make(*, kind="lstm", hidden=64) -> Task:
    """A sequence is a digit's 28 rows of 28 pixels; RMSprop, as the documents have it."""
    train, validation, test = (Split(part.inputs.view(-1, 28, 28), part.targets) for part in digits())
    return Task(
        name="recurrent",
        label=f"recurrent-{kind}",
        config={"kind": kind, "hidden": hidden},
        build=lambda layers: RecurrentClassifier(kind, hidden=hidden, layers=layers),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        metric="accuracy",
        maximize=True,
        epochs=15,
        batch_size=32,
        learning_rate=1e-3,
        optimizer="rmsprop",
        max_grad_norm=1.0,
        items=f"digits, row by row: {len(train)} to train on, {len(validation)} to validate, {len(test)} to test",
    )
