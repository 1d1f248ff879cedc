import copy

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bigkern import functional, train
from bigkern.data import digits
from bigkern.models.mlp import MLP, plain_pytorch_twin
from bigkern.reference.models import mlp as reference
from bigkern.train_command import train as train_command
from tests.support import assert_within_policy, to_oracle


def as_numpy(model):
    return [to_oracle(layer.weight) for layer in model], [to_oracle(layer.bias) for layer in model]


@pytest.mark.parametrize("sizes", [(784, 64, 10), (3, 4, 2), (5, 7, 6, 3)])
def test_forward_and_every_gradient_match_the_numpy_twin(sizes):
    model = MLP(sizes).double()
    input = torch.randn(9, sizes[0], dtype=torch.float64)
    target = torch.randint(sizes[-1], (9,))
    loss = functional.cross_entropy(model(input), target)
    loss.backward()
    weights, biases = as_numpy(model)
    logits, _ = reference.mlp_forward(weights, biases, to_oracle(input))
    grad_weights, grad_biases = reference.mlp_backward(weights, biases, to_oracle(input), to_oracle(target))
    np.testing.assert_allclose(to_oracle(model(input)), logits, rtol=1e-12, atol=1e-12)
    assert loss.item() == pytest.approx(reference.mlp_loss(logits, to_oracle(target)), rel=1e-12)
    for layer, grad_weight, grad_bias in zip(model, grad_weights, grad_biases, strict=True):
        np.testing.assert_allclose(layer.weight.grad, grad_weight, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(layer.bias.grad, grad_bias, rtol=1e-10, atol=1e-13)


def test_numpy_twin_gradient_by_finite_differences():
    generator = np.random.default_rng(0)
    weights, biases = [generator.standard_normal((4, 3)), generator.standard_normal((2, 4))], [np.ones(4), np.ones(2)]
    input, target = generator.standard_normal((5, 3)), np.array([0, 1, 1, 0, 1])
    grad_weights, _ = reference.mlp_backward(weights, biases, input, target)
    step = 1e-6
    for layer, row, column in ((0, 1, 2), (0, 3, 0), (1, 0, 3), (1, 1, 1)):
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(weights)
            moved[layer][row, column] += sign * step
            losses.append(reference.mlp_loss(reference.mlp_forward(moved, biases, input)[0], target))
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert grad_weights[layer][row, column] == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_one_training_step_equals_plain_pytorch():
    model = MLP((784, 64, 10))
    twin = plain_pytorch_twin(model)
    exact = copy.deepcopy(twin).double()
    input, target = torch.rand(32, 784), torch.randint(10, (32,))
    contestants = [
        train.adam_contestant("bigkern", model, train.bigkern_loss, 1e-3),
        train.adam_contestant("PyTorch", twin, torch.nn.functional.cross_entropy, 1e-3),
        train.adam_contestant("float64", exact, torch.nn.functional.cross_entropy, 1e-3),
    ]
    for contestant in contestants:
        contestant.step(input.double() if contestant.name == "float64" else input, target)
    for ours, theirs, oracle in zip(model.parameters(), twin.parameters(), exact.parameters(), strict=True):
        assert_within_policy(ours.grad, oracle.grad, theirs.grad, what="gradient")
        # Adam's first step is lr * sign(gradient): where the gradient is 0 up to rounding the sign is anybody's.
        settled = oracle.grad.abs() > 1e-6
        torch.testing.assert_close(ours[settled], theirs[settled], rtol=1e-5, atol=1e-6)


def test_digits_split_is_stratified_disjoint_and_repeatable():
    parts = digits(seed=3)
    assert [len(part) for part in parts] == [1257, 270, 270]
    again = digits(seed=3)
    for part, same in zip(parts, again, strict=True):
        assert torch.equal(part.inputs, same.inputs)
        shares = torch.bincount(part.targets) / len(part)
        assert (shares - 0.1).abs().max() < 0.02
        assert part.inputs.shape[1] == 784
        assert part.inputs.min() >= 0
        assert part.inputs.max() <= 1
    rows = {tuple(row.tolist()) for part in parts for row in part.inputs[:, 300:500]}
    assert len(rows) >= 1790  # 1797 images; a leak would repeat hundreds


def test_digits_rejects_wrong_fractions():
    with pytest.raises(ValueError, match=r"digits: fractions must be positive and add up to 1, got \(0.9, 0.2, 0.1\)"):
        digits(fractions=(0.9, 0.2, 0.1))


def test_mlp_rejects_a_single_width():
    with pytest.raises(ValueError, match=r"MLP: sizes must name an input and an output width, got \(784,\)"):
        MLP((784,))


def test_train_command_reaches_the_target_and_writes_what_it_says(tmp_path):
    result = CliRunner().invoke(
        train_command, ["mlp", "--epochs", "10", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "50,890 parameters" in result.output
    assert "largest difference in loss along the way" in result.output
    model = MLP((784, 64, 10))
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    test_split = digits(0)[2]
    assert train.evaluate(model, test_split)["accuracy"] >= 0.95
    assert train.evaluate(train.quantized(model), test_split)["accuracy"] >= 0.95
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_train_command_fails_below_the_target(tmp_path):
    result = CliRunner().invoke(train_command, ["mlp", "--lr", "0", "--out", str(tmp_path), "--no-compare"])
    assert result.exit_code == 1
    assert "is under 0.95" in result.output
