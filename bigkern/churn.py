"""Tables with a yes-or-no column: a CSV of the user's own, and a made one of customers who leave or stay."""

import csv
from pathlib import Path

import numpy as np
import torch

YES, NO = {"1", "yes", "true", "y", "t"}, {"0", "no", "false", "n", "f"}


def read_table(path, target=None):
    """A CSV file with a first line of names; numbers as they are, words as one column of 0 and 1 for each.

    Args:
        target: name of the yes-or-no column (1/0, yes/no, true/false); None: the last one.

    Returns:
        (rows float32 [count, features], targets float32 [count], names of the features)

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such column, a line has too few or too many fields, a number or an answer is missing, or
            all answers are the same.
    """
    with open(path, newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if len(lines) < 11:
        raise ValueError(f"{path} has {max(len(lines) - 1, 0)} rows; at least 10 are needed, below a line of names")
    names, *lines = lines
    target = names[-1] if target is None else target
    if target not in names:
        raise ValueError(f"{path} has no column {target!r}; its columns are {', '.join(names)}")
    for number, line in enumerate(lines, 2):
        if len(line) != len(names):
            raise ValueError(f"{path}, row {number}: expected {len(names)} fields, got {len(line)}")
    columns = {name: [line[i].strip() for line in lines] for i, name in enumerate(names)}
    answers = [_answer(word, path, target, number) for number, word in enumerate(columns.pop(target), 2)]
    if len(set(answers)) < 2:
        raise ValueError(f"{path}: every answer in {target!r} is the same")
    features = {}
    for name, words in columns.items():
        features |= _feature(name, words, path)
    rows = np.stack(list(features.values()), axis=1)
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(answers, dtype=torch.float32), list(features)


def _answer(word, path, target, number):
    if word.lower() in YES:
        return 1.0
    if word.lower() in NO:
        return 0.0
    raise ValueError(f"{path}, row {number}: {target!r} must be yes or no, true or false, 1 or 0, got {word!r}")


def _feature(name, words, path):
    """{name: column} for numbers, {"name=word": column of 0 and 1} for each word else."""
    for number, word in enumerate(words, 2):
        if not word:
            raise ValueError(f"{path}, row {number}: {name!r} is empty")
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        kinds = sorted(set(words))
        if len(kinds) > 50:
            raise ValueError(
                f"{path}: {name!r} has {len(kinds)} different words; leave out what only names a row"
            ) from None
        return {f"{name}={kind}": np.array([float(word == kind) for word in words]) for kind in kinds}
    if not np.isfinite(values).all():
        raise ValueError(f"{path}, row {int(np.argmin(np.isfinite(values))) + 2}: {name!r} is not finite")
    return {name: values}


def write_made_churn(path, count=2000, seed=0):
    """Writes a CSV of made customers: months, monthly charge, support calls, contract, and whether they left.

    They leave with probability sigmoid(0.5 - 0.06 months + 0.02 (charge - 60) + 0.7 calls - 1.5 if yearly).
    """
    generator = np.random.default_rng(seed)
    months = generator.integers(1, 60, count)
    charge = generator.uniform(20, 120, count).round(2)
    calls = generator.poisson(1.5, count)
    yearly = generator.random(count) < 0.4
    logits = 0.5 - 0.06 * months + 0.02 * (charge - 60) + 0.7 * calls - 1.5 * yearly
    left = generator.random(count) < 1 / (1 + np.exp(-logits))
    with open(Path(path), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("months", "charge", "calls", "contract", "churn"))
        for row in zip(months, charge, calls, yearly, left, strict=True):
            writer.writerow((*row[:3], "yearly" if row[3] else "monthly", "yes" if row[4] else "no"))
