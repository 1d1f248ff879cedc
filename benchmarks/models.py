"""The record of trained models: results/<device>/models/<label>.json, and the table results/models.md made of them."""

import json
from pathlib import Path

from .common import RESULTS, device_slug, environment_record

TABLE = RESULTS / "models.md"
HEAD = """# Trained models

Each line is one run of `bigkern train`, and the command repeats it. Times are medians of training steps (forward,
backward, clipping and optimizer) of the same model from the same weights, taken in turns in one process; a ratio above
1 means that bigkern is faster than PyTorch with its fused optimizer, eager or under torch.compile. Written by `bigkern
report`.
"""


def record(result: dict, label: str, command: str, seconds: float, device: str) -> Path:
    """Keeps one run's result; returns where.

    Args:
        result: of `bigkern.run.run`, with the times of --compare.
        label: names the run and its file.
        command: what was typed.
        seconds: what training took.
        device: "cpu" or "cuda".
    """
    path = RESULTS / device_slug(device) / "models" / f"{label}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"label": label, "command": command, "training seconds": seconds, **result}
    path.write_text(json.dumps({**kept, "environment": environment_record(device)}, indent=1) + "\n")
    return path


def table(folder: Path = RESULTS) -> str:
    """results/models.md."""
    text = HEAD
    for device in sorted(path.parent for path in folder.glob("*/models")):
        records = [json.loads(path.read_text()) for path in sorted((device / "models").glob("*.json"))]
        where = records[0]["environment"]
        text += f"\n## {where['processor'] if where['device'] == 'cpu' else device.name}\n\n"
        text += "| model | parameters | on the test data | training | a step | vs eager | vs compile | command |\n"
        text += "|---|---|---|---|---|---|---|---|\n"
        for each in records:
            quality = ", ".join(f"{name} {value:.4g}" for name, value in each["test"].items())
            times = each["seconds per step"]
            ratios = [
                f"{times[peer] / times['bigkern']:.2f}x" if peer in times else "-" for peer in ("eager", "compile")
            ]
            training = f"{each['training seconds']:.0f} s, {each['steps']} steps"
            cells = (
                *(each["label"], f"{each['parameters']:,}", quality, training, f"{times['bigkern'] * 1e3:.2f} ms"),
                *(*ratios, f"`{each['command']}`"),
            )
            text += f"| {' | '.join(cells)} |\n"
    return text
