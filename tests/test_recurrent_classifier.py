import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.layers import Ours, plain_twin
from bigkern.models.recurrent_classifier import KINDS, RecurrentClassifier
from bigkern.reference.models.recurrent_classifier import recurrent_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.support import to_oracle

SEQUENCES, TARGETS = torch.randn(3, 6, 5), torch.tensor([0, 3, 2])


def builder(kind):
    return lambda layers=Ours: RecurrentClassifier(kind, features=5, hidden=7, classes=4, layers=layers)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_every_gradient_match_the_numpy_twin(kind):
    model, sequences = builder(kind)().double(), SEQUENCES.double()
    loss = model.loss(sequences, TARGETS)
    loss.backward()
    parameters = {name: to_oracle(value) for name, value in model.state_dict().items()}
    expected, logits, gradients = recurrent_loss_and_gradients(parameters, kind, sequences.numpy(), TARGETS.numpy())
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(to_oracle(model(sequences)), logits, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name], rtol=1e-9, atol=1e-13, err_msg=name)
        place = np.unravel_index(np.abs(gradients[name]).argmax(), gradients[name].shape)
        losses = []
        for sign in (1, -1):
            moved = dict(parameters, **{name: parameters[name].copy()})
            moved[name][place] += sign * 1e-6
            losses.append(recurrent_loss_and_gradients(moved, kind, sequences.numpy(), TARGETS.numpy())[0])
        assert gradients[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_one_training_step_equals_plain_pytorch(kind):
    build = builder(kind)
    model = build()
    twin, exact = plain_twin(model, build), plain_twin(model, build).double()
    for each in (model, twin, exact):
        optimizer = torch.optim.SGD(each.parameters(), lr=1.0)
        each.loss(SEQUENCES.to(each.output.weight.dtype), TARGETS).backward()
        optimizer.step()
    named = zip(model.named_parameters(), twin.parameters(), exact.parameters(), strict=True)
    for (name, ours), theirs, right in named:
        error, allowed = ((x.double() - right).abs().max().item() for x in (ours, theirs))
        assert error <= 2 * allowed + 4 * 1.2e-7 * right.abs().max().item(), name


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
