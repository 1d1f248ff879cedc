import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.cnn import CNN
from bigkern.models.layers import Ours
from bigkern.reference.models.cnn import cnn_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle


def build(layers=Ours):
    return CNN(image=8, channels=2, classes=5, widths=(3, 4), hidden=6, layers=layers)


IMAGES, TARGETS = torch.randn(3, 2, 8, 8), torch.tensor([0, 4, 2])


def test_forward_and_every_gradient_match_the_numpy_twin():
    model, images = build().double(), IMAGES.double()
    twin = lambda parameters: cnn_loss_and_gradients(parameters, images.numpy(), TARGETS.numpy())  # noqa: E731
    logits = check_against_twin(model, model.loss(images, TARGETS), twin)
    np.testing.assert_allclose(to_oracle(model(images)), logits, rtol=1e-10, atol=1e-12)


def test_one_training_step_equals_plain_pytorch():
    check_one_training_step(build, lambda model, dtype: model.loss(IMAGES.to(dtype), TARGETS))


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="side must be divisible by 4, got 30"):
        CNN(image=30)
    with pytest.raises(ValueError, match=r"images must be \[batch, 2, 8, 8\], got \(3, 2, 8, 9\)"):
        build()(torch.ones(3, 2, 8, 9))


def test_command_learns(tmp_path):
    result = CliRunner().invoke(train_command, ["cnn", "--epochs", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "result.json").read_text())["test"]["accuracy"] > 0.85
