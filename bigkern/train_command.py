"""`bigkern train`: the models that can be trained from the command line."""

import importlib
import shlex
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .tasks import TASKS

# The documents print 50,852; 784*64 + 64 + 64*10 + 10 is this.
MLP_PARAMETERS = 50_890
MLP_TARGET_ACCURACY = 0.95


class TrainGroup(click.Group):
    """The perceptron of `mlp`, and a command for every task; a task's file is imported when it is asked for."""

    def list_commands(self, ctx):
        return [*self.commands, *TASKS]

    def get_command(self, ctx, name):
        if name not in TASKS:
            return super().get_command(ctx, name)
        return task_command(name)

    def format_commands(self, ctx, formatter):
        summaries = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(list({**summaries, **TASKS}.items()))


@click.group(cls=TrainGroup)
def train():
    """Train a model on data that is already on this machine."""


def task_command(name):
    """The command of a task: its own options, then those of every training."""
    options = importlib.import_module(f"bigkern.tasks.{name}").OPTIONS
    return click.Command(
        name,
        params=[*options, *common_options(name)],
        callback=lambda **values: run_task(name, {option.name for option in options}, values),
        help=TASKS[name],
        short_help=TASKS[name],
    )


def common_options(name):
    """Options of every training. Where one has no default, the task's own is taken."""
    number, count = click.FloatRange(0), click.IntRange(1)
    return [
        click.Option(["--epochs"], type=count, help="Passes over the training data."),
        click.Option(["--batch-size"], type=count),
        click.Option(["--lr", "learning_rate"], type=number, help="Learning rate, after the warm-up."),
        click.Option(["--weight-decay"], type=number, help="L2 penalty; of adamw, decoupled decay."),
        click.Option(["--l1"], type=number, default=0.0, show_default=True, help="Strength of an L1 penalty."),
        click.Option(["--schedule"], type=click.Choice(["constant", "cosine", "step"]), help="Of the learning rate."),
        click.Option(["--warmup-steps"], type=click.IntRange(0), help="Steps of linear rise before the schedule."),
        click.Option(["--max-grad-norm"], type=number, help="Gradients are clipped to this norm together."),
        click.Option(["--accumulate"], type=count, default=1, show_default=True, help="Batches to one step."),
        click.Option(
            ["--precision"], type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
        ),
        click.Option(["--patience"], type=count, help="Stop after this many epochs without a better validation."),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="Of weights, data order and samples."),
        click.Option(["--device"], help="cpu or cuda.  [default: cuda where there is one]"),
        click.Option(["--resume"], is_flag=True, help="Go on from the checkpoint in --out, to the same losses."),
        click.Option(["--compare"], is_flag=True, help="Time steps beside plain PyTorch, eager and compiled."),
        click.Option(["--record"], is_flag=True, help="--compare, and keep the result in benchmarks/results/."),
        click.Option(
            ["--out"],
            default=f"runs/{name}",
            show_default=True,
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder for checkpoint.pt, best.safetensors, loss.png and result.json.",
        ),
    ]


def run_task(name, own, values):
    """Runs a task; what a user can mend ends in one line and exit code 1."""
    _require_extras()
    import torch

    from .checkpoint import CheckpointError
    from .run import run
    from .trainer import Diverged

    settings = {key: value for key, value in values.items() if key not in own}
    out, resume, compare, record = (settings.pop(key) for key in ("out", "resume", "compare", "record"))
    command = f"bigkern train {name} {shlex.join(typed_arguments())}".strip() if record else None
    settings["device"] = settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        task = importlib.import_module(f"bigkern.tasks.{name}").make(**{key: values[key] for key in own})
        for key in settings:
            if settings[key] is None and hasattr(task, key):
                settings[key] = getattr(task, key)
        run(task, settings, out, resume, compare or record, Console(), command)
    except (CheckpointError, Diverged, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def typed_arguments():
    """What was typed after the task's name, without what only says where results go."""
    context = click.get_current_context()
    kept = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is not click.core.ParameterSource.COMMANDLINE or parameter.name in ("out", "record", "compare"):
            continue
        value = context.params[parameter.name]
        kept += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(value)]
    return kept


def _require_extras():
    try:
        import matplotlib  # noqa: F401
        import safetensors.torch  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            f"{error}; training needs the extra packages: pip install 'bigkern[train]'"
        ) from None


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
    _require_extras()
    import safetensors.torch
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

    columns = [_column(training, model, test_split) for model in models]
    for i, contestant in enumerate(contestants):
        kept = training.saved_bytes(contestant.model, contestant.loss_function, inputs, targets)
        columns[i]["training step"] = f"{contestant.median_step * 1e6:.0f} us"
        columns[i]["  step speed-up"] = f"{baseline.median_step / contestant.median_step:.2f}x"
        columns[i]["kept for backward"] = f"{kept / 1024:.0f} KiB"
    if len(contestants) > 1:
        losses = zip(contestants[0].losses, baseline.losses, strict=True)
        columns[0]["largest difference in loss"] = f"{max(abs(a - b) for a, b in losses):.1e}"
    for column, seconds in zip(columns, forward_seconds, strict=True):
        column["prediction"] = f"{seconds * 1e6:.0f} us"
        column["  prediction speed-up"] = f"{forward_seconds[len(contestants) - 1] / seconds:.2f}x"

    table = Table(title="784-64-10 perceptron on the test set")
    table.add_column("")
    for name in [contestant.name for contestant in contestants] + ["bigkern INT8"]:
        table.add_column(name, justify="right")
    for row in columns[0]:
        table.add_row(row, *(column.get(row, "-") for column in columns))
    table.caption = (
        f"the loss of every one of {len(baseline.losses)} training steps is compared with {baseline.name}'s;\n"
        f"times are medians for a batch of {batch_size}; a step is forward, backward and Adam;\n"
        f"speed-up: how many times as fast as {baseline.name}"
    )
    return table


def _column(training, model, test_split):
    """The rows of the table that need nothing but the model."""
    quality = training.evaluate(model, test_split)
    column = {name: f"{quality[name]:.4f}" for name in ("accuracy", "precision", "recall", "f1")}
    column["weights"] = f"{training.weight_bytes(model) / 1024:.0f} KiB"
    return column
