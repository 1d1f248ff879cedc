"""Yes or no from the columns of a table: scikit-learn's breast cancer set, or a CSV of the user's own."""

import tempfile
from pathlib import Path

import click
import torch

from ..churn import read_table, write_made_churn
from ..data import Split
from ..models.binary_classifier import BinaryClassifier
from . import Task

OPTIONS = [
    click.Option(
        ["--table"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A CSV of yours with a first line of names.  [default: scikit-learn's breast cancer set]",
    ),
    click.Option(["--made-churn"], is_flag=True, help="A made table of customers who leave or stay."),
    click.Option(["--target"], help="Its yes-or-no column.  [default: the last]"),
    click.Option(["--hidden"], default="64,64", show_default=True, help="Widths of the hidden layers; '' for none."),
    click.Option(
        ["--loss"],
        type=click.Choice(["cross-entropy", "squared-error"]),
        default="cross-entropy",
        show_default=True,
        help="squared-error: of the probabilities, by plain gradient descent.",
    ),
]


def make(*, table=None, made_churn=False, target=None, hidden="64,64", loss="cross-entropy") -> Task:
    """Raises:
    OSError, ValueError: the table cannot be read or is not fit for it, or hidden is not a list of widths.
    """
    rows, answers, names, title = _data(table, made_churn, target)
    try:
        widths = [int(width) for width in hidden.split(",") if width.strip()]
    except ValueError:
        raise ValueError(f"--hidden must be widths between commas, got {hidden!r}") from None
    if any(width < 1 for width in widths):
        raise ValueError(f"--hidden must be positive widths, got {hidden!r}")
    train, validation, test = _split(rows, answers)
    mean, deviation = train.inputs.mean(0), train.inputs.std(0).clamp(min=1e-6)  # of what is trained on, nothing else
    parts = [Split((part.inputs - mean) / deviation, part.targets) for part in (train, validation, test)]
    squared = loss == "squared-error"
    return Task(
        name="binary_classifier",
        label=f"binary_classifier{'-churn' if made_churn else ''}{'-squared-error' if squared else ''}",
        config={"features": names, "hidden": widths, "loss": loss},
        build=lambda kind: BinaryClassifier(len(names), widths, kind),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        loss=lambda model, batch: model.squared_error(*batch) if squared else model.loss(*batch),
        evaluate=quality,
        metric="AUC",
        maximize=True,
        epochs=60 if squared else 20,
        batch_size=32,
        learning_rate=0.5 if squared else 1e-3,
        weight_decay=0.0 if squared else 1e-4,
        optimizer="sgd" if squared else "adam",
        momentum=0.0,
        items=f"{title}: {len(parts[0])} rows to train on, {len(parts[1])} to validate, {len(parts[2])} to test",
    )


def _data(table, made_churn, target):
    if table is not None:
        return *read_table(table, target), str(table)
    if made_churn:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "churn.csv"
            write_made_churn(path)
            return *read_table(path, target), "made customers"
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    rows = torch.tensor(data.data, dtype=torch.float32)
    return rows, torch.tensor(data.target, dtype=torch.float32), data.feature_names.tolist(), "breast cancer"


def _split(rows, answers):
    """70, 15 and 15 percent, with the same share of answers in each."""
    from sklearn.model_selection import train_test_split

    places = torch.arange(len(rows)).numpy()
    train, rest = train_test_split(places, train_size=0.7, stratify=answers, random_state=0)
    validation, test = train_test_split(rest, train_size=0.5, stratify=answers[rest], random_state=0)
    return [Split(rows[part], answers[part]) for part in (train, validation, test)]


def quality(model, data) -> dict:
    """Accuracy, precision, recall and F1 of answers at probability 1/2, and the area under the ROC curve."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    logits = torch.cat([model(rows) for rows, _ in data.batches(1024)]).cpu()
    predicted = logits > 0
    precision, recall, f1, _ = precision_recall_fscore_support(
        data.targets, predicted, average="binary", zero_division=0
    )
    accuracy = accuracy_score(data.targets, predicted)
    found = {"accuracy": accuracy, "precision": precision, "recall": recall, "F1": f1}
    return {name: float(value) for name, value in {**found, "AUC": roc_auc_score(data.targets, logits)}.items()}
