import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.layers import Ours
from bigkern.models.recurrent_classifier import KINDS, RecurrentClassifier
from bigkern.reference.models.recurrent_classifier import recurrent_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle

SEQUENCES, TARGETS = torch.randn(3, 6, 5), torch.tensor([0, 3, 2])


def builder(kind):
    return lambda layers=Ours: RecurrentClassifier(kind, features=5, hidden=7, classes=4, layers=layers)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_every_gradient_match_the_numpy_twin(kind):
    model, sequences = builder(kind)().double(), SEQUENCES.double()
    arrays = sequences.numpy(), TARGETS.numpy()
    twin = lambda parameters: recurrent_loss_and_gradients(parameters, kind, *arrays)  # noqa: E731
    logits = check_against_twin(model, model.loss(sequences, TARGETS), twin)
    np.testing.assert_allclose(to_oracle(model(sequences)), logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_training_step_equals_plain_pytorch(kind):
    check_one_training_step(builder(kind), lambda model, dtype: model.loss(SEQUENCES.to(dtype), TARGETS))


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="kind must be one of rnn, lstm, gru, got 'tcn'"):
        RecurrentClassifier("tcn")


def test_command_learns(tmp_path):
    arguments = [
        "recurrent",
        "--kind",
        "gru",
        "--hidden",
        "48",
        "--epochs",
        "4",
        "--lr",
        "0.003",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(train_command, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "result.json").read_text())["test"]["accuracy"] > 0.7
