"""`bigkern train`: the models that can be trained from the command line."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# The documents print 50,852; 784*64 + 64 + 64*10 + 10 is this.
MLP_PARAMETERS = 50_890
MLP_TARGET_ACCURACY = 0.95


@click.group()
def train():
    """Train a model on data that is already on this machine."""


@train.command()
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1), help="Passes over the training data.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@click.option("--lr", "learning_rate", default=1e-3, show_default=True, help="Adam's learning rate.")
@click.option("--seed", default=0, show_default=True, help="Of the weights, the split and the shuffling.")
@click.option("--compare/--no-compare", default=True, show_default=True, help="Train plain PyTorch beside it.")
@click.option(
    "--out",
    default="runs/mlp",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for model.safetensors and loss.png.",
)
def mlp(epochs, batch_size, learning_rate, seed, compare, out):
    """The 784-64-10 perceptron on scikit-learn's handwritten digits, then in INT8.

    Exit code 1 if the test accuracy stays under 0.95 after 10 or more epochs.
    """
    try:
        import matplotlib  # noqa: F401
        import safetensors.torch
        import sklearn  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            f"{error}; training needs the extra packages: pip install 'bigkern[train]'"
        ) from None
    import torch

    from . import train as training
    from .data import digits
    from .models.mlp import MLP, plain_pytorch_twin

    console = Console()
    torch.manual_seed(seed)
    train_split, validation_split, test_split = digits(seed)
    model = MLP((784, 64, 10))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != MLP_PARAMETERS:
        raise click.ClickException(f"the 784-64-10 perceptron has {MLP_PARAMETERS} parameters, this one {parameters}")
    contestants = [training.adam_contestant("bigkern", model, training.bigkern_loss, learning_rate)]
    if compare:
        twin = plain_pytorch_twin(model)
        loss_function = torch.nn.functional.cross_entropy
        contestants.append(training.adam_contestant("PyTorch", twin, loss_function, learning_rate))
    console.print(
        f"{parameters:,} parameters; digits: {len(train_split)} to train on, {len(validation_split)} to validate, "
        f"{len(test_split)} to test"
    )

    steps = epochs * -(-len(train_split) // batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps)

        def on_epoch(epoch, accuracies):
            named = zip(contestants, accuracies, strict=True)
            shown = ", ".join(f"{contestant.name} {accuracy:.4f}" for contestant, accuracy in named)
            progress.console.print(f"epoch {epoch + 1:2d}/{epochs}  validation accuracy: {shown}")

        training.train(
            contestants,
            train_split,
            validation_split,
            epochs,
            batch_size,
            seed,
            on_epoch,
            lambda: progress.advance(task),
        )

    int8_model = training.quantized(model)
    console.print(_table(contestants, int8_model, test_split, train_split, batch_size))
    if compare:
        ours, theirs = contestants
        difference = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        console.print(f"largest difference in loss along the way: {difference:.2e} over {len(ours.losses)} steps")

    out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), out / "model.safetensors")
    training.save_loss_curve(contestants, out / "loss.png")
    console.print(f"wrote {out / 'model.safetensors'} and {out / 'loss.png'}")

    accuracy = training.evaluate(model, test_split)["accuracy"]
    if epochs >= 10 and accuracy < MLP_TARGET_ACCURACY:
        raise click.ClickException(f"test accuracy {accuracy:.4f} is under {MLP_TARGET_ACCURACY}")


def _table(contestants, int8_model, test_split, train_split, batch_size):
    """Quality, memory and time of each network on the test set."""
    from . import train as training

    inputs, targets = next(train_split.batches(batch_size))
    models = [contestant.model for contestant in contestants] + [int8_model]
    forward_seconds = training.time_forward(models, inputs)
    baseline = contestants[-1]  # plain PyTorch where it runs

    table = Table(title="784-64-10 perceptron, test set")
    table.add_column("")
    for name in ("accuracy", "precision", "recall", "F1", "step", "ratio", "forward", "ratio", "weights", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, model in enumerate(models):
        contestant = contestants[i] if i < len(contestants) else None
        quality = training.evaluate(model, test_split)
        forward_ratio = forward_seconds[len(contestants) - 1] / forward_seconds[i]
        kept = training.saved_bytes(model, contestant.loss_function, inputs, targets) if contestant else None
        table.add_row(
            contestant.name if contestant else "bigkern INT8",
            *(f"{quality[key]:.4f}" for key in ("accuracy", "precision", "recall", "f1")),
            f"{contestant.median_step * 1e6:.0f} us" if contestant else "-",
            f"{baseline.median_step / contestant.median_step:.2f}x" if contestant else "-",
            f"{forward_seconds[i] * 1e6:.0f} us",
            f"{forward_ratio:.2f}x",
            f"{training.weight_bytes(model) / 1024:.0f} KiB",
            f"{kept / 1024:.0f} KiB" if contestant else "-",
        )
    table.caption = (
        f"batch {batch_size}; step: forward, backward and Adam; ratio: how many times faster than {baseline.name}; "
        "kept: what autograd holds for the backward"
    )
    return table
