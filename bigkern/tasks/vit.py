"""A vision transformer on scikit-learn's handwritten digits."""

import click

from ..data import Split, digits
from ..models.vit import ViT, ViTConfig
from ..train import evaluate
from . import Task

OPTIONS = [
    click.Option(["--layers"], type=click.IntRange(1), default=4, show_default=True),
    click.Option(["--heads"], type=click.IntRange(1), default=4, show_default=True),
    click.Option(["--width"], type=click.IntRange(1), default=64, show_default=True),
    click.Option(["--patch"], type=click.IntRange(1), default=7, show_default=True, help="Pixels of 28 to a patch."),
    click.Option(["--dropout"], type=click.FloatRange(0, 1), default=0.1, show_default=True),
]


def make(*, layers=4, heads=4, width=64, patch=7, dropout=0.1) -> Task:
    """Raises:
    ValueError: patch does not divide 28, or heads do not divide width.
    """
    config = ViTConfig(
        image=28, patch=patch, channels=1, classes=10, layers=layers, heads=heads, width=width, dropout=dropout
    )
    train, validation, test = (Split(part.inputs.view(-1, 1, 28, 28), part.targets) for part in digits())
    return Task(
        name="vit",
        config=vars(config),
        build=lambda kind: ViT(config, kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=evaluate,
        metric="accuracy",
        maximize=True,
        epochs=20,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.05,
        optimizer="adamw",
        schedule="cosine",
        warmup_steps=40,
        max_grad_norm=1.0,
        items=f"digits: {len(train)} to train on, {len(validation)} to validate, {len(test)} to test",
    )
