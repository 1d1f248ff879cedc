"""The loop that trains every model: accumulation, clipping, mixed precision, schedules, early stopping, exact resume.

    trainer = Trainer(model, optimizer, loss, scheduler=warmup_cosine(optimizer, 20, 400), max_grad_norm=1.0)
    trainer.fit(train_data, epochs=10, batch_size=32, evaluate=validation_loss, patience=3)

The order of the data depends on the seed and the epoch alone, and a checkpoint holds everything else that a step
depends on: a run that was killed goes on to the same losses, bit for bit on one machine.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import checkpoint
from .nn.utils import clip_grad_norm_

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """Where a run stands, and what it has seen."""

    epoch: int = 0
    batches: int = 0  # of this epoch
    steps: int = 0
    losses: list[float] = field(default_factory=list)  # of every step
    evaluations: list[dict] = field(default_factory=list)  # of every epoch
    best: float | None = None
    best_epoch: int = -1
    stopped_early: bool = False


class Trainer:
    """Trains a model with a loss function and an optimizer.

    Args:
        model: any module; it is left in training mode.
        optimizer: of bigkern.optim or torch.optim.
        loss_function: called as loss_function(model, batch); the mean over the batch, a tensor of one element.
        scheduler: a learning-rate scheduler of torch, stepped after every step; or None.
        max_grad_norm: gradients are clipped to this norm together; None: no clipping.
        accumulate: batches whose gradients are averaged into one step.
        precision: "float32"; or "bfloat16" or "float16", torch.autocast, the latter with loss scaling.
        l1: strength of a penalty on the parameters' absolute values (L2 is the optimizer's weight_decay).
        seed: of the order of the data.
        path, name, config: where to keep the checkpoint, and what the model is: see `bigkern.checkpoint`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable,
        *,
        scheduler=None,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        precision: str = "float32",
        l1: float = 0.0,
        seed: int = 0,
        path: Path | None = None,
        name: str = "",
        config: dict | None = None,
    ):
        if accumulate < 1:
            raise ValueError(f"Trainer: accumulate must be at least 1, got {accumulate}")
        if precision not in PRECISIONS:
            raise ValueError(f"Trainer: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if l1 < 0:
            raise ValueError(f"Trainer: l1 must not be negative, got {l1}")
        self.model, self.optimizer, self.loss_function, self.scheduler = model, optimizer, loss_function, scheduler
        self.max_grad_norm, self.accumulate, self.precision, self.l1 = max_grad_norm, accumulate, precision, l1
        self.seed, self.path, self.name, self.config = seed, path, name, config or {}
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.progress = Progress()

    # ---- one step ----------------------------------------------------------------------------------------------------

    def loss(self, batch) -> torch.Tensor:
        """The loss of a batch as it is trained: in the chosen precision, with the L1 penalty."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
            loss = self.loss_function(self.model, batch)
        if self.l1:
            loss = loss + self.l1 * sum(parameter.abs().sum() for parameter in self.model.parameters())
        return loss

    def step(self, batches: list) -> float:
        """One step of the optimizer on the mean gradient of `batches`; returns their mean loss."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss = self.loss(batch) / len(batches)
            self.scaler.scale(loss).backward()
            total += loss.item()
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total} at step {self.progress.steps + 1}; try a lower learning rate")
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self.progress.steps += 1
        self.progress.losses.append(total)
        return total

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        data,
        epochs: int,
        batch_size: int,
        *,
        evaluate: Callable[[torch.nn.Module], dict] | None = None,
        metric: str = "loss",
        maximize: bool = False,
        patience: int | None = None,
        save_every: int | None = None,
        on_step: Callable[[float], None] | None = None,
        on_epoch: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Trains until `epochs` epochs are done, from where the run stands.

        Args:
            data: has batches(batch_size, generator), as `bigkern.data.Split`.
            evaluate: called with the model in eval mode after every epoch; returns metrics by name.
            metric, maximize: which of them says how good the model is. The best model so far is kept beside the
                checkpoint, as best.safetensors.
            patience: epochs without a better metric after which training stops; None: never.
            save_every: steps between checkpoints; there is one after every epoch anyway. Both only where Trainer has a
                path.
            on_step: called with the loss of every step. on_epoch: called after every epoch.

        Raises:
            Diverged: the loss is NaN or infinite.
            bigkern.checkpoint.CheckpointError: a checkpoint cannot be written.
        """
        progress = self.progress
        while progress.epoch < epochs and not progress.stopped_early:
            for batches in self._steps_left(data, batch_size):
                loss = self.step(batches)
                progress.batches += len(batches)
                if save_every and progress.steps % save_every == 0:
                    self.save()
                if on_step:
                    on_step(loss)
            progress.epoch, progress.batches = progress.epoch + 1, 0
            if evaluate is not None:
                self._judge(evaluate, metric, maximize, patience)
            self.save()
            if on_epoch:
                on_epoch(progress)
        return progress

    def _steps_left(self, data, batch_size) -> Iterator[list]:
        """The batches of each step of this epoch that are still to be made."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.progress.epoch)
        waiting, done = [], self.progress.batches
        for index, batch in enumerate(data.batches(batch_size, generator)):
            if index < done:
                continue
            waiting.append(self._on_device(batch))
            if len(waiting) == self.accumulate:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _on_device(self, batch):
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device)
        return type(batch)(self._on_device(part) for part in batch)

    def _judge(self, evaluate, metric, maximize, patience):
        progress = self.progress
        self.model.eval()
        with torch.no_grad():
            progress.evaluations.append(evaluate(self.model))
        value = progress.evaluations[-1][metric]
        better = progress.best is None or (value > progress.best if maximize else value < progress.best)
        if better:
            progress.best, progress.best_epoch = value, progress.epoch
            self._save_weights("best.safetensors")
        elif patience is not None and progress.epoch - progress.best_epoch >= patience:
            progress.stopped_early = True

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _save_weights(self, file_name):
        if self.path is None:
            return
        from safetensors.torch import save_model

        checkpoint.write_whole(self.path / file_name, lambda temporary: save_model(self.model, str(temporary)))

    def save(self) -> None:
        """Writes everything that the next step depends on to path / "checkpoint.pt"; nothing without a path."""
        if self.path is None:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "progress": vars(self.progress),
            "seed": self.seed,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoint.save(self.path / "checkpoint.pt", self.name, self.config, state)

    def resume(self) -> Progress:
        """Goes on from path / "checkpoint.pt".

        Raises:
            bigkern.checkpoint.CheckpointError: there is none, or it belongs to something else.
        """
        if self.path is None:
            raise checkpoint.CheckpointError("this trainer has no path, so there is no checkpoint to resume from")
        state = checkpoint.load(self.path / "checkpoint.pt", self.name, self.config)
        if state["seed"] != self.seed:
            raise checkpoint.CheckpointError(f"the checkpoint was trained with seed {state['seed']}, not {self.seed}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return self.progress


# ---- schedules -------------------------------------------------------------------------------------------------------


def constant(optimizer, warmup_steps: int, total_steps: int):
    """The optimizer's learning rate, after a linear rise over `warmup_steps`."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup(step, warmup_steps))


def cosine(optimizer, warmup_steps: int, total_steps: int, floor: float = 0.1):
    """A linear rise over `warmup_steps`, then half a cosine down to `floor` times the learning rate (Loshchilov and
    Hutter, "SGDR", 2017)."""

    def factor(step):
        done = min(max(step - warmup_steps, 0) / max(total_steps - warmup_steps, 1), 1)
        return _warmup(step, warmup_steps) * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def step_down(optimizer, warmup_steps: int, total_steps: int, factor: float = 0.1):
    """A linear rise over `warmup_steps`, then `factor` times the learning rate after a half and three quarters."""

    def multiplier(step):
        drops = (step >= total_steps / 2) + (step >= total_steps * 3 / 4)
        return _warmup(step, warmup_steps) * factor**drops

    return torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)


def _warmup(step, warmup_steps):
    return min((step + 1) / warmup_steps, 1) if warmup_steps else 1.0


SCHEDULES = {"constant": constant, "cosine": cosine, "step": step_down}
