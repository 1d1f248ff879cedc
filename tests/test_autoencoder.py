import json

import pytest
import torch
from click.testing import CliRunner

from bigkern.models.autoencoder import Autoencoder
from bigkern.models.layers import Ours
from bigkern.reference.models.autoencoder import autoencoder_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step

PICTURES, NOISE = torch.rand(5, 12), torch.randn(5, 3)
KINDS = {"plain": False, "variational": True}


def builder(variational):
    return lambda layers=Ours: Autoencoder(12, 8, 3, variational, layers)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_every_gradient_match_the_numpy_twin(kind):
    model, pictures = builder(KINDS[kind])().double(), PICTURES.double()
    noise = NOISE.double() if KINDS[kind] else None
    arrays = pictures.numpy(), None if noise is None else noise.numpy()
    twin = lambda parameters: autoencoder_loss_and_gradients(parameters, *arrays)  # noqa: E731
    check_against_twin(model, model.loss(pictures, noise), twin)


@pytest.mark.parametrize("kind", KINDS)
def test_one_training_step_equals_plain_pytorch(kind):
    check_one_training_step(
        builder(KINDS[kind]), lambda model, dtype: model.loss(PICTURES.to(dtype), NOISE.to(dtype)), learning_rate=0.1
    )


def test_the_bound_of_a_perfect_code_is_the_entropy_of_the_pixels():
    """With mean 0 and variance 1 for every picture the divergence is 0 and only the pixels cost."""
    model = builder(True)()
    for parameter in (model.encode_code.weight, model.encode_code.bias):
        torch.nn.init.zeros_(parameter)
    logits = model.decode(NOISE)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, PICTURES, reduction="sum") / 5
    torch.testing.assert_close(model.loss(PICTURES, NOISE), expected)


def test_only_a_variational_one_draws():
    generator = torch.Generator().manual_seed(3)
    drawn = builder(True)().draw(4, generator)
    assert drawn.shape == (4, 12)
    assert ((drawn > 0) & (drawn < 1)).all()
    with pytest.raises(ValueError, match="only a variational one can draw"):
        builder(False)().draw(4)


def test_commands_learn_to_reconstruct(tmp_path):
    # The mean of all digits in place of each is off by 0.22.
    for options, most in (((), 0.14), (("--variational", "--code", "8"), 0.2)):
        folder = tmp_path / str(len(options))
        arguments = ["autoencoder", *options, "--epochs", "6", "--out", str(folder)]
        result = CliRunner().invoke(train_command, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads((folder / "result.json").read_text())["test"]["RMSE"] < most
        assert (folder / "pictures.png").stat().st_size > 5000
