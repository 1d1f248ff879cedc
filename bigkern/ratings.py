"""Ratings and clicks for the recommenders: files in MovieLens' formats, and made ones whose best result is known."""

from pathlib import Path

import numpy as np
import torch

from .data import Table


def split(columns, seed=0, fractions=(0.8, 0.1)):
    """(train, validation, test), three Tables of rows drawn at random."""
    count = len(columns[0])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cuts = [round(count * fractions[0]), round(count * (fractions[0] + fractions[1]))]
    return tuple(Table(tuple(column[rows] for column in columns)) for rows in order.tensor_split(cuts))


def read_ratings(path):
    """A file of ratings: user, item, rating, and perhaps a timestamp on each line.

    Columns are separated by tabs (MovieLens 100K), "::" (1M) or commas (20M and later; a first line of names is
    skipped). Users and items may be any words: they are numbered in their order.

    Returns:
        (users int64, items int64, ratings float32, names of the users, names of the items)

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not a rating, with its number; or there are fewer than ten.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        separator = next((mark for mark in ("::", "\t", ",") if mark in line), None)
        fields = [field.strip() for field in line.split(separator)] if separator else []
        try:
            user, item, rating = fields[0], fields[1], float(fields[2])
        except (IndexError, ValueError):
            if number == 1 and separator == ",":
                continue
            raise ValueError(
                f"{path}, line {number}: expected user, item and rating between tabs, commas or ::, got {line[:60]!r}"
            ) from None
        if not np.isfinite(rating):
            raise ValueError(f"{path}, line {number}: the rating is {rating}")
        rows.append((user, item, rating))
    if len(rows) < 10:
        raise ValueError(f"{path} has {len(rows)} ratings; at least 10 are needed")
    users, user_places = np.unique([row[0] for row in rows], return_inverse=True)
    items, item_places = np.unique([row[1] for row in rows], return_inverse=True)
    ratings = torch.tensor([row[2] for row in rows], dtype=torch.float32)
    return torch.from_numpy(user_places), torch.from_numpy(item_places), ratings, users.tolist(), items.tolist()


NOISE = 0.5


def made_ratings(users=300, items=200, share=0.4, rank=4, seed=0):
    """Ratings that follow the model with noise of deviation `NOISE`: no model can have a smaller root mean square error
    on ratings that it has not seen.

    Returns:
        (users int64, items int64, ratings float32): `share` of all pairs, drawn at random.
    """
    generator = np.random.default_rng(seed)
    user_vectors, item_vectors = (generator.normal(0, rank**-0.25, (count, rank)) for count in (users, items))
    user_biases, item_biases = (generator.normal(0, 0.3, count) for count in (users, items))
    pairs = generator.permutation(users * items)[: int(users * items * share)]
    user, item = np.divmod(pairs, items)
    ratings = 3.5 + user_biases[user] + item_biases[item] + (user_vectors[user] * item_vectors[item]).sum(1)
    ratings += generator.normal(0, NOISE, len(pairs))
    return torch.from_numpy(user), torch.from_numpy(item), torch.tensor(ratings, dtype=torch.float32)


def made_clicks(count=40_000, seed=0):
    """Clicks on advertisements, drawn with probabilities that are known.

    Two categorical features of 50 and 20 values, which matter together, and three numbers.

    Returns:
        (categories int64 [count, 2], numbers float32 [count, 3], clicks float32 [count], probabilities float32 [count])
    """
    generator = np.random.default_rng(seed)
    categories = np.stack((generator.integers(0, 50, count), generator.integers(0, 20, count)), 1)
    numbers = generator.normal(size=(count, 3))
    first, second = generator.normal(size=(50, 3)), generator.normal(size=(20, 3))
    logits = -1 + (first[categories[:, 0]] * second[categories[:, 1]]).sum(1) + numbers @ (0.8, -0.5, 0.0)
    probabilities = 1 / (1 + np.exp(-logits))
    clicks = generator.random(count) < probabilities
    return (
        torch.from_numpy(categories),
        torch.tensor(numbers, dtype=torch.float32),
        torch.tensor(clicks, dtype=torch.float32),
        torch.tensor(probabilities, dtype=torch.float32),
    )
