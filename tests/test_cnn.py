import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.cnn import CNN
from bigkern.models.layers import Ours, plain_twin
from bigkern.reference.models.cnn import cnn_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.support import to_oracle


def build(layers=Ours):
    return CNN(image=8, channels=2, classes=5, widths=(3, 4), hidden=6, layers=layers)


IMAGES, TARGETS = torch.randn(3, 2, 8, 8), torch.tensor([0, 4, 2])


def test_forward_and_every_gradient_match_the_numpy_twin():
    model, images = build().double(), IMAGES.double()
    loss = model.loss(images, TARGETS)
    loss.backward()
    parameters = {name: to_oracle(value) for name, value in model.state_dict().items()}
    expected, logits, gradients = cnn_loss_and_gradients(parameters, images.numpy(), TARGETS.numpy())
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(to_oracle(model(images)), logits, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name], rtol=1e-9, atol=1e-13, err_msg=name)
        place = np.unravel_index(np.abs(gradients[name]).argmax(), gradients[name].shape)
        losses = []
        for sign in (1, -1):
            moved = dict(parameters, **{name: parameters[name].copy()})
            moved[name][place] += sign * 1e-6
            losses.append(cnn_loss_and_gradients(moved, images.numpy(), TARGETS.numpy())[0])
        assert gradients[name][place] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_one_training_step_equals_plain_pytorch():
    model = build()
    twin, exact = plain_twin(model, build), plain_twin(model, build).double()
    for each in (model, twin, exact):
        optimizer = torch.optim.SGD(each.parameters(), lr=1.0)
        each.loss(IMAGES.to(each.output.weight.dtype), TARGETS).backward()
        optimizer.step()
    named = zip(model.named_parameters(), twin.parameters(), exact.parameters(), strict=True)
    for (name, ours), theirs, right in named:
        error, allowed = ((x.double() - right).abs().max().item() for x in (ours, theirs))
        assert error <= 2 * allowed + 4 * 1.2e-7 * right.abs().max().item(), name


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="side must be divisible by 4, got 30"):
        CNN(image=30)
    with pytest.raises(ValueError, match=r"images must be \[batch, 2, 8, 8\], got \(3, 2, 8, 9\)"):
        build()(torch.ones(3, 2, 8, 9))


def test_command_learns(tmp_path):
    result = CliRunner().invoke(train_command, ["cnn", "--epochs", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "result.json").read_text())["test"]["accuracy"] > 0.85
