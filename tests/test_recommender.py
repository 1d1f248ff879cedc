import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from bigkern.models.layers import Ours
from bigkern.models.recommender import ClickNetwork, MatrixFactorization
from bigkern.ratings import NOISE, made_clicks, made_ratings, read_ratings, split
from bigkern.reference.models import recommender as reference
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle


def factorization(layers=Ours):
    return MatrixFactorization(7, 5, rank=3, mean=2.5, layers=layers)


def clicks(layers=Ours):
    return ClickNetwork((4, 3), 2, rank=3, hidden=(8, 6), layers=layers)


RATINGS = torch.tensor([0, 1, 6, 0]), torch.tensor([4, 0, 2, 4]), torch.tensor([3.0, 1.0, 5.0, 2.0])
CLICKS = torch.tensor([[0, 2], [3, 0], [1, 1], [3, 2]]), torch.randn(4, 2), torch.tensor([1.0, 0.0, 0.0, 1.0])


def in_dtype(batch, dtype):
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch]


def factorization_twin(parameters, *arrays):
    return reference.factorization_loss_and_gradients(parameters, *arrays)


def click_twin(parameters, *arrays):
    return reference.click_loss_and_gradients(parameters, np.array([0, 4]), *arrays)


MODELS = {"ratings": (factorization, RATINGS, factorization_twin), "clicks": (clicks, CLICKS, click_twin)}


@pytest.mark.parametrize("kind", MODELS)
def test_forward_and_every_gradient_match_the_numpy_twin(kind):
    build, batch, twin = MODELS[kind]
    model, batch = build().double(), in_dtype(batch, torch.float64)
    arrays = [to_oracle(tensor) for tensor in batch]
    output = check_against_twin(model, model.loss(*batch), lambda parameters: twin(parameters, *arrays))
    np.testing.assert_allclose(to_oracle(model(*batch[:2])), output, rtol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_one_training_step_equals_plain_pytorch(kind):
    build, batch, _ = MODELS[kind]
    check_one_training_step(build, lambda model, dtype: model.loss(*in_dtype(batch, dtype)))


def test_recommendations_are_the_best_items_not_seen():
    model = factorization()
    items, ratings = model.recommend(2, 10, seen=(1, 3))
    assert sorted(items.tolist()) == [0, 2, 4]
    assert torch.equal(ratings, ratings.sort(descending=True).values)
    torch.testing.assert_close(ratings, model(torch.full((3,), 2), items))


def test_every_format_of_movielens_is_read(tmp_path):
    lines = [("u1", "i9", 4.0), ("u2", "i9", 3.5), ("u1", "i3", 1.0)] * 4
    for name, separator, header in (
        ("u.data", "\t", ""),
        ("ratings.dat", "::", ""),
        ("ratings.csv", ",", "userId,movieId,rating,timestamp\n"),
    ):
        file = tmp_path / name
        file.write_text(header + "".join(separator.join((u, i, str(r), "881250949")) + "\n" for u, i, r in lines))
        users, items, ratings, user_names, item_names = read_ratings(file)
        assert [
            (user_names[u], item_names[i], r) for u, i, r in zip(users, items, ratings.tolist(), strict=True)
        ] == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n1,2\n", "line 2: expected user, item and rating between tabs"),
        ("1 2 3\n", "line 1: expected user, item and rating"),
        ("1,2,nan\n", "line 1: the rating is nan"),
        ("1,2,3\n", "has 1 ratings; at least 10 are needed"),
    ],
)
def test_files_that_are_no_ratings_are_refused(tmp_path, text, message):
    file = tmp_path / "ratings.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ratings(file)
    result = CliRunner().invoke(train_command, ["recommender", "--ratings", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert message.split(":")[0] in result.output.replace("\n", " ")


def test_splits_hold_every_row_once():
    parts = split(made_ratings()[:2])
    pairs = torch.cat([part.columns[0] * 1000 + part.columns[1] for part in parts])
    assert len(pairs) == len(pairs.unique()) == 24_000
    assert [len(part) for part in parts] == [19_200, 2_400, 2_400]


def test_made_clicks_follow_their_probabilities():
    _, _, clicked, probabilities = made_clicks()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        chosen = (probabilities >= low) & (probabilities < low + 0.2)
        assert clicked[chosen].mean().item() == pytest.approx(probabilities[chosen].mean().item(), abs=0.03)


def test_commands_come_near_the_known_optimum(tmp_path):
    _, _, clicked, probabilities = made_clicks()
    best_auc = roc_auc_score(clicked, probabilities)
    for kind, epochs, metric, best, slack in (
        ("ratings", 10, "RMSE", NOISE, 0.15),
        ("clicks", 3, "AUC", best_auc, 0.06),
    ):
        folder = tmp_path / kind
        arguments = ["recommender", "--kind", kind, "--epochs", str(epochs), "--lr", "0.01", "--out", str(folder)]
        result = CliRunner().invoke(train_command, arguments)
        assert result.exit_code == 0, result.output
        measured = json.loads((folder / "result.json").read_text())["test"][metric]
        assert abs(measured - best) < slack, (kind, measured)
    recommended = json.loads((tmp_path / "ratings" / "recommendations.json").read_text())
    assert len(recommended["items"]) == 5
