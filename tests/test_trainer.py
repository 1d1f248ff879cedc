import math
import os
import resource
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bigkern import checkpoint
from bigkern.data import Split, Windows, python_documentation
from bigkern.trainer import SCHEDULES, Diverged, Trainer

DATA = Split(torch.randn(37, 6, generator=torch.Generator().manual_seed(1)), torch.arange(37) % 3)


def loss_function(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def make(path=None, seed=0, lr=0.05, dropout=0.3, **options):
    """A trainer of a small network with dropout, whose every step depends on the random state."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = SCHEDULES["cosine"](optimizer, 3, 40)
    config = {"width": 16}
    return Trainer(
        model,
        optimizer,
        loss_function,
        scheduler=scheduler,
        path=path,
        name="small",
        config=config,
        seed=seed,
        **options,
    )


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [5, 10, 13])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["one batch", "two batches"])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path, steps, options):
    """Killed in the first step of an epoch's end, and in the middle; batches of 4 make 10 of an epoch, the last odd."""
    whole = make(**options)
    whole.fit(DATA, 4, 4)

    def kill(loss):
        if killed.progress.steps == steps:
            raise Killed

    killed = make(tmp_path, **options)
    with pytest.raises(Killed):
        killed.fit(DATA, 4, 4, save_every=1, on_step=kill)
    resumed = make(tmp_path, **options)
    torch.randn(100)  # another state of the generator than the killed run had
    resumed.resume()
    assert resumed.progress.steps == steps
    resumed.fit(DATA, 4, 4)
    assert resumed.progress.losses == whole.progress.losses
    assert torch.equal(weights(resumed), weights(whole))


def test_accumulated_batches_make_the_step_of_one_large_batch():
    data = Split(DATA.inputs[:32], DATA.targets[:32])
    large, small = make(dropout=0.0), make(dropout=0.0, accumulate=4)
    large.fit(data, 2, 16)
    small.fit(data, 2, 4)
    assert large.progress.steps == small.progress.steps == 4
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_and_l1_is_added():
    trainer = make(max_grad_norm=1e-3, dropout=0.0)
    trainer.step([(DATA.inputs, DATA.targets)])
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-4)
    batch = DATA.inputs, DATA.targets
    plain, with_l1 = make(dropout=0.0), make(dropout=0.0, l1=0.1)
    difference = with_l1.loss(batch) - plain.loss(batch)
    assert difference.item() == pytest.approx(0.1 * weights(plain).abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_trains_like_float32(precision):
    trainers = [make(dropout=0.0, precision=name) for name in ("float32", precision)]
    for trainer in trainers:
        trainer.fit(DATA, 6, 8)
    first, last = trainers[1].progress.losses[0], trainers[1].progress.losses[-1]
    assert last < first
    assert abs(last - trainers[0].progress.losses[-1]) < 0.1
    assert next(trainers[1].model.parameters()).dtype == torch.float32


def test_best_weights_are_kept_and_patience_ends_the_run(tmp_path):
    values = iter([3.0, 1.0, 2.0, 1.5, 0.0])
    seen = []

    def evaluate(model):
        assert not model.training
        seen.append(weights(trainer))
        return {"loss": next(values)}

    trainer = make(tmp_path)
    progress = trainer.fit(DATA, 9, 8, evaluate=evaluate, patience=2)
    assert (progress.epoch, progress.best, progress.best_epoch, progress.stopped_early) == (4, 1.0, 2, True)
    kept = load_file(tmp_path / "best.safetensors")
    order = [name for name, _ in trainer.model.named_parameters()]
    assert torch.equal(torch.cat([kept[name].flatten() for name in order]), seen[1])


def test_a_loss_that_is_no_number_stops_the_run():
    trainer = make()
    with pytest.raises(Diverged, match="the loss is nan at step 1; try a lower learning rate"):
        trainer.step([(DATA.inputs * float("nan"), DATA.targets)])


def test_schedules():
    def rates(name, warmup, total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
        scheduler = SCHEDULES[name](optimizer, warmup, total)
        found = []
        for _ in range(total):
            found.append(scheduler.get_last_lr()[0] / 2)
            optimizer.step()
            scheduler.step()
        return found

    assert rates("constant", 4, 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates("constant", 0, 2) == [1, 1]
    cosine = rates("cosine", 2, 10)
    assert cosine[:3] == pytest.approx([0.5, 1, 1])
    assert cosine[6] == pytest.approx(0.1 + 0.9 * 0.5)
    assert cosine[9] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert rates("step", 0, 8) == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16, got 'int8'"),
        ({"l1": -1}, "l1 must not be negative, got -1"),
    ],
)
def test_wrong_settings_are_told(options, message):
    with pytest.raises(ValueError, match=f"Trainer: {message}"):
        make(**options)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_of_something_else_are_refused(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint at"):
        trainer.resume()
    trainer.save()
    other_model = make(tmp_path)
    other_model.name = "large"
    other_size = make(tmp_path)
    other_size.config = {"width": 32, "depth": 2}
    with pytest.raises(checkpoint.CheckpointError, match="a checkpoint of the model 'small', not of 'large'"):
        other_model.resume()
    with pytest.raises(
        checkpoint.CheckpointError, match="depth is None there and 2 here; width is 16 there and 32 here"
    ):
        other_size.resume()
    with pytest.raises(checkpoint.CheckpointError, match="was trained with seed 0, not 5"):
        make(tmp_path, seed=5).resume()
    torch.save({"format": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint of this version"):
        trainer.resume()
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint of bigkern"):
        trainer.resume()


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """The system refuses files above a size: what writing to a full disk looks like from inside."""
    trainer = make(tmp_path)
    trainer.step([(DATA.inputs, DATA.targets)])
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    trainer.step([(DATA.inputs, DATA.targets)])
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(checkpoint.CheckpointError, match=r"could not write .*; the one before is untouched"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    again = make(tmp_path)
    assert again.resume().steps == 1


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"format": 1, "model": "small", "config": {}, "state": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint of bigkern"):
        make(tmp_path).resume()
    assert not (tmp_path / "ran").exists()


# ---- data ------------------------------------------------------------------------------------------------------------


def test_windows_hold_every_token_once_and_targets_follow():
    data = Windows(torch.arange(103), 10)
    assert len(data) == 10
    inputs = torch.cat([inputs for inputs, _ in data.batches(4, torch.Generator().manual_seed(0))])
    assert torch.equal(inputs.flatten().sort().values, torch.arange(100))
    for inputs, targets in data.batches(4):
        assert torch.equal(targets, inputs + 1)


def test_documentation_is_split_without_overlap():
    train, validation, test = python_documentation()
    assert len(train) > 200_000
    assert min(len(validation), len(test)) > 3_000
    paragraphs = [{part for part in text.split("\n\n") if len(part) > 200} for text in (train, validation, test)]
    assert not paragraphs[0] & (paragraphs[1] | paragraphs[2])
