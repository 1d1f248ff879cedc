"""Recommenders: ratings by matrix factorisation, clicks by a network."""

import json
from pathlib import Path

import click
import torch

from ..models.recommender import ClickNetwork, MatrixFactorization
from ..ratings import NOISE, made_clicks, made_ratings, read_ratings, split
from . import Task

OPTIONS = [
    click.Option(["--kind"], type=click.Choice(["ratings", "clicks"]), default="ratings", show_default=True),
    click.Option(
        ["--ratings"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file in one of MovieLens' formats.  [default: made ratings, whose best error is known]",
    ),
    click.Option(["--rank"], type=click.IntRange(1), default=8, show_default=True, help="Of the vectors."),
]


def make(*, kind="ratings", ratings=None, rank=8) -> Task:
    """Raises:
    OSError, ValueError: the file of ratings cannot be read, or is none.
    """
    return _ratings(ratings, rank) if kind == "ratings" else _clicks(rank)


def _ratings(path, rank):
    users, items, ratings = read_ratings(path)[:3] if path else made_ratings()
    names = read_ratings(path)[3:] if path else None
    train, validation, test = split((users, items, ratings))
    config = {"users": int(users.max()) + 1, "items": int(items.max()) + 1, "rank": rank}
    mean = train.columns[2].mean().item()

    def afterwards(model, folder, console):
        """Recommendations for the first user, by the names of the file."""
        seen = items[users == 0].tolist()
        found, expected = model.recommend(0, 5, seen)
        user_name, item_names = ("0", None) if names is None else (names[0][0], names[1])
        best = [
            {"item": str(i) if item_names is None else item_names[i], "rating": round(r, 2)}
            for i, r in zip(found.tolist(), expected.tolist(), strict=True)
        ]
        (folder / "recommendations.json").write_text(json.dumps({"user": user_name, "items": best}, indent=1) + "\n")
        console.print(f"for user {user_name}: {', '.join(entry['item'] for entry in best)}", highlight=False)

    best = "" if path else f"; no model can be better than an RMSE of {NOISE}"
    return Task(
        name="recommender",
        label="recommender-ratings",
        config={"kind": "ratings", **config},
        build=lambda kind: MatrixFactorization(**config, mean=mean, layers=kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=errors,
        metric="RMSE",
        epochs=15,
        batch_size=256,
        learning_rate=5e-3,
        weight_decay=2e-5,
        optimizer="adam",
        schedule="cosine",
        items=f"{len(ratings):,} ratings of {config['items']} items by {config['users']} users{best}",
        afterwards=afterwards,
    )


def _clicks(rank):
    *columns, probabilities = made_clicks()
    *_, clicks = columns
    best = torch.nn.functional.binary_cross_entropy(probabilities, clicks).item()
    train, validation, test = split(columns)
    config = {"categories": [50, 20], "numbers": 3, "rank": rank}
    return Task(
        name="recommender",
        label="recommender-clicks",
        config={"kind": "clicks", **config},
        build=lambda kind: ClickNetwork(**config, layers=kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=click_quality,
        metric="loss",
        epochs=6,
        batch_size=256,
        learning_rate=2e-3,
        weight_decay=1e-5,
        optimizer="adamw",
        items=f"{len(clicks):,} made impressions, {clicks.mean():.0%} clicked; their own probabilities have a loss of "
        f"{best:.4f}",
    )


def errors(model, data) -> dict:
    """Root mean square error and mean absolute error of the ratings."""
    differences = torch.cat([model(users, items) - ratings for users, items, ratings in data.batches(4096)])
    return {"RMSE": differences.square().mean().sqrt().item(), "MAE": differences.abs().mean().item()}


def click_quality(model, data) -> dict:
    """Binary cross-entropy in nats, and the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    logits = torch.cat([model(categories, numbers) for categories, numbers, _ in data.batches(4096)])
    clicks = data.columns[2].to(logits.device)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, clicks).item()
    return {"loss": loss, "AUC": float(roc_auc_score(clicks.cpu(), logits.cpu()))}
