"""One run of `bigkern train`: build, train with a progress bar, test, compare with plain PyTorch, write it all down."""

import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import checkpoint, optim
from .models.layers import Ours, Plain
from .tasks import Task
from .trainer import SCHEDULES, Trainer

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
COMPARED_STEPS = 30
WARM_UP_STEPS = 5


def make_optimizer(task: Task, module, parameters, settings):
    """The task's optimizer, of torch.optim or bigkern.optim.

    PyTorch's is the fused one where there is one: the fastest that its user could have.
    """
    options = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}
    if task.optimizer == "sgd":
        options["momentum"] = task.momentum
    if module is torch.optim and task.optimizer != "rmsprop":
        options["fused"] = True
    return getattr(module, OPTIMIZERS[task.optimizer])(parameters, **options)


def make_trainer(task: Task, settings: dict, path: Path | None) -> Trainer:
    """The trainer of a task with bigkern's layers and optimizer."""
    torch.manual_seed(settings["seed"])
    device = torch.device(settings["device"])
    model = task.build(Ours).to(device)
    optimizer = make_optimizer(task, optim, model.parameters(), settings)
    batches = -(-len(task.train) // settings["batch_size"])
    total_steps = settings["epochs"] * -(-batches // settings["accumulate"])
    scheduler = SCHEDULES[settings["schedule"]](optimizer, settings["warmup_steps"], total_steps)
    return Trainer(
        model,
        optimizer,
        task.loss,
        scheduler=scheduler,
        max_grad_norm=settings["max_grad_norm"],
        accumulate=settings["accumulate"],
        precision=settings["precision"],
        l1=settings["l1"],
        seed=settings["seed"],
        path=path,
        name=task.name,
        config=task.config,
    )


def run(
    task: Task, settings: dict, out: Path, resume: bool, compare: bool, console: Console, recorded_as: str | None = None
) -> dict:
    """Trains, tests and writes; returns what was measured.

    Args:
        settings: epochs, batch_size, learning_rate, weight_decay, schedule, warmup_steps, max_grad_norm, accumulate,
            precision, seed, device, patience.
        out: folder of the run.
        resume: go on from the checkpoint there.
        compare: time training steps beside plain PyTorch's, eager and compiled.
        recorded_as: the command to keep the result under in benchmarks/results/; None: it is not kept there.

    Raises:
        bigkern.checkpoint.CheckpointError, bigkern.trainer.Diverged: as their names say.
    """
    trainer = make_trainer(task, settings, out)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    console.print(f"{task.name}: {parameters:,} parameters on {trainer.device}; {task.items}", highlight=False)
    if resume:
        progress = trainer.resume()
        console.print(f"resumed at epoch {progress.epoch}, step {progress.steps}")
    start = time.perf_counter()
    _train(task, trainer, settings, console)
    seconds = time.perf_counter() - start

    best = out / "best.safetensors"
    if best.exists():
        from safetensors.torch import load_model

        load_model(trainer.model, str(best))
    trainer.model.eval()
    with torch.no_grad():
        quality = task.evaluate(trainer.model, task.test)
    _write_curve(trainer.progress, out)
    if task.afterwards:
        with torch.no_grad():
            task.afterwards(trainer.model, out, console)
    result = {"task": task.name, "parameters": parameters, "test": quality, "steps": trainer.progress.steps}
    _write_result(result, out)
    if compare:
        result["seconds per step"] = time_steps(task, settings)
        _write_result(result, out)
    console.print(result_table(result))
    if recorded_as:
        from .benchmarks import models

        models.record(result, task.label or task.name, recorded_as, seconds, trainer.device.type)
    console.print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} in {out}", highlight=False)
    return result


def _write_result(result, out):
    checkpoint.write_whole(out / "result.json", lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))


def _train(task, trainer, settings, console):
    batches = -(-len(task.train) // settings["batch_size"])
    steps = settings["epochs"] * -(-batches // settings["accumulate"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("training", total=steps, completed=trainer.progress.steps)

        def on_epoch(progress):
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in progress.evaluations[-1].items())
            bar.console.print(f"epoch {progress.epoch:2d}/{settings['epochs']}  validation {metrics}", highlight=False)

        progress = trainer.fit(
            task.train,
            settings["epochs"],
            settings["batch_size"],
            evaluate=lambda model: task.evaluate(model, task.validation),
            metric=task.metric,
            maximize=task.maximize,
            patience=settings["patience"],
            save_every=500,
            on_step=lambda loss: bar.update(shown, advance=1, description=f"loss {loss:.4f}"),
            on_epoch=on_epoch,
        )
    if progress.stopped_early:
        console.print(f"stopped early: epoch {progress.best_epoch} was the best")


# ---- beside plain PyTorch --------------------------------------------------------------------------------------------


def time_steps(task: Task, settings: dict, steps: int = COMPARED_STEPS) -> dict[str, float]:
    """Median seconds of a training step of the same model: bigkern's layers and optimizer, PyTorch's layers and fused
    optimizer eager, and those under torch.compile. They start from the same weights and take turns. What torch.compile
    cannot compile is left out."""
    device = torch.device(settings["device"])
    ours = make_trainer(task, settings, None)
    contestants = {"bigkern": ours}
    for name in ("eager", "compile"):
        model = task.build(Plain).to(device)
        model.load_state_dict(ours.model.state_dict())
        optimizer = make_optimizer(task, torch.optim, model.parameters(), settings)
        if name == "compile":
            model.forward = torch.compile(model.forward, dynamic=False)
        contestants[name] = Trainer(
            model, optimizer, task.loss, max_grad_norm=settings["max_grad_norm"], precision=settings["precision"]
        )
    seconds = {name: [] for name in contestants}
    generator = torch.Generator().manual_seed(settings["seed"])
    done = 0
    while done < steps + WARM_UP_STEPS:
        for batch in task.train.batches(settings["batch_size"], generator):
            if len(batch[0]) < settings["batch_size"] and len(task.train) >= settings["batch_size"]:
                continue  # another shape, which would be compiled anew
            order = list(contestants.items())
            for name, trainer in order if done % 2 else reversed(order):
                moved = trainer._on_device(batch)
                start = time.perf_counter()
                try:
                    trainer.step([moved])
                except torch._dynamo.exc.TorchDynamoException:
                    if name != "compile":
                        raise
                    del contestants[name], seconds[name]
                    continue
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
            done += 1
            if done == steps + WARM_UP_STEPS:
                break
    return {name: statistics.median(times[WARM_UP_STEPS:]) for name, times in seconds.items()}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def result_table(result: dict) -> Table:
    table = Table(title=f"{result['task']}, {result['parameters']:,} parameters, {result['steps']} steps")
    table.add_column("")
    table.add_column("test", justify="right")
    for name, value in result["test"].items():
        table.add_row(name, f"{value:.4f}")
    if times := result.get("seconds per step"):
        table.add_row("time of a step", f"{times['bigkern'] * 1e3:.1f} ms")
        for name in [name for name in times if name != "bigkern"]:
            table.add_row(f"  speed-up over PyTorch {name}", f"{times[name] / times['bigkern']:.2f}x")
    return table


def _write_curve(progress, out):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot(range(1, len(progress.losses) + 1), progress.losses, linewidth=0.7)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=120)
    pyplot.close(figure)
