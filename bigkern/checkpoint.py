"""Files of a training run that are whole or not there at all.

A file is written beside its place and moved there when it is complete: a full disk or a killed process leaves the last
good one as it was.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or used; the message says why and what is left."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary path) and moves what it wrote to `path`.

    Raises:
        CheckpointError: the file could not be written. What stood at `path` before still does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch reports a full disk as RuntimeError, safetensors as its own SafetensorError.
    except Exception as error:
        before = "the one before is untouched" if path.exists() else "there was none before"
        raise CheckpointError(f"could not write {path} ({error}); {before}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, model: str, config: dict, state: dict) -> None:
    """Writes the state of a run of the model named `model`, built with `config`.

    Raises:
        CheckpointError: as `write_whole`.
    """
    content = {"format": FORMAT, "model": model, "config": config, "state": state}
    write_whole(path, lambda temporary: torch.save(content, temporary))


def load(path: Path, model: str, config: dict) -> dict:
    """The state that `save` wrote. Only tensors and plain values are read: a file cannot run code.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or it belongs to another model or to the same
            model with other settings.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a file that it did not write
        raise CheckpointError(f"{path} is not a checkpoint of bigkern ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of bigkern")
    if content["model"] != model:
        raise CheckpointError(f"{path} is a checkpoint of the model {content['model']!r}, not of {model!r}")
    differing = [
        f"{name} is {content['config'].get(name)!r} there and {config.get(name)!r} here"
        for name in sorted({*content["config"], *config})
        if content["config"].get(name) != config.get(name)
    ]
    if differing:
        raise CheckpointError(f"{path} belongs to other settings: {'; '.join(differing)}")
    return content["state"]
