import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.churn import read_table, write_made_churn
from bigkern.models.binary_classifier import BinaryClassifier
from bigkern.models.layers import Ours
from bigkern.reference.models.binary_classifier import classifier_loss_and_gradients
from bigkern.tasks.binary_classifier import make
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle

ROWS, TARGETS = torch.randn(9, 5), (torch.rand(9) < 0.5).float()
LOSSES = {"cross_entropy": BinaryClassifier.loss, "squared_error": BinaryClassifier.squared_error}


@pytest.mark.parametrize("hidden", [(7, 6), ()], ids=["two layers", "one unit"])
@pytest.mark.parametrize("loss", LOSSES)
def test_forward_and_every_gradient_match_the_numpy_twin(loss, hidden):
    model = BinaryClassifier(5, hidden).double()
    rows, targets = ROWS.double(), TARGETS.double()
    arrays = rows.numpy(), targets.numpy(), loss
    twin = lambda parameters: classifier_loss_and_gradients(parameters, *arrays)  # noqa: E731
    logits = check_against_twin(model, LOSSES[loss](model, rows, targets), twin)
    np.testing.assert_allclose(to_oracle(model(rows)), logits, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_training_step_equals_plain_pytorch(loss):
    check_one_training_step(
        lambda layers=Ours: BinaryClassifier(5, (7, 6), layers),
        lambda model, dtype: LOSSES[loss](model, ROWS.to(dtype), TARGETS.to(dtype)),
    )


def test_tables_are_read_with_words_as_columns(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(
        "age,left,plan\n" + "".join(f"{20 + i},{'Yes' if i % 3 else 'no'},{'ab'[i % 2]}\n" for i in range(12))
    )
    rows, answers, names = read_table(file, "left")
    assert names == ["age", "plan=a", "plan=b"]
    assert rows[:3].tolist() == [[20, 1, 0], [21, 0, 1], [22, 1, 0]]
    assert answers.tolist() == [0, 1, 1] * 4


TEN = "".join(f"{i},{i % 2}\n" for i in range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,0\n", "has 1 rows; at least 10 are needed"),
        ("a,b\n" + TEN + "1\n", "row 12: expected 2 fields, got 1"),
        ("a,b\n" + TEN + "1,maybe\n", "row 12: 'b' must be yes or no, true or false, 1 or 0, got 'maybe'"),
        ("a,b\n" + TEN + ",1\n", "row 12: 'a' is empty"),
        ("a,b\n" + TEN + "inf,1\n", "row 12: 'a' is not finite"),
        ("a,b\n" + "1,1\n" * 10, "every answer in 'b' is the same"),
    ],
)
def test_tables_that_are_not_fit_are_refused(tmp_path, text, message):
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(file)
    result = CliRunner().invoke(train_command, ["binary_classifier", "--table", str(file), "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")
    with pytest.raises(ValueError, match="has no column 'c'; its columns are a, b"):
        read_table(_ten(tmp_path), "c")


def _ten(folder):
    file = folder / "ten.csv"
    file.write_text("a,b\n" + TEN)
    return file


def test_rows_are_scaled_by_what_is_trained_on_and_parts_do_not_overlap():
    task = make()
    assert task.train.inputs.mean(0).abs().max() < 1e-4
    assert (task.train.inputs.std(0) - 1).abs().max() < 1e-3
    assert len(task.train) + len(task.validation) + len(task.test) == 569
    shares = [part.targets.mean().item() for part in (task.train, task.validation, task.test)]
    assert max(shares) - min(shares) < 0.02


def test_commands_learn(tmp_path):
    churn = tmp_path / "churn.csv"
    write_made_churn(churn)
    for name, options, least in (
        ("cancer", ("--epochs", "8"), 0.97),
        ("churn", ("--table", str(churn), "--target", "churn", "--epochs", "6"), 0.75),
        ("unit", ("--made-churn", "--loss", "squared-error", "--hidden", "", "--epochs", "6"), 0.75),
    ):
        arguments = ["binary_classifier", *options, "--out", str(tmp_path / name)]
        result = CliRunner().invoke(train_command, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / name / "result.json").read_text())["test"]["AUC"] > least, name
