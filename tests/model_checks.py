"""What every model's test asks: gradients as its NumPy twin's, and a training step as plain PyTorch's."""

import numpy as np
import pytest
import torch

from bigkern.models.layers import plain_twin
from tests.support import FEW, to_oracle


def check_against_twin(model, loss, twin, rtol=1e-10, atol=1e-14, step=1e-6, difference_rtol=1e-5):
    """A loss and the gradient of every parameter against the twin, and the twin by differences of its own loss.

    Args:
        model: in float64; loss: of it.
        twin: parameters by name -> (loss, output, gradients by name).
        rtol, atol: of a gradient. step, difference_rtol: of the differences.

    Returns:
        The twin's output.
    """
    loss.backward()
    parameters = {name: to_oracle(value) for name, value in model.state_dict().items()}
    expected, output, gradients = twin(parameters)
    assert loss.item() == pytest.approx(float(expected), rel=1e-12)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name], rtol=rtol, atol=atol, err_msg=name)
        place = np.unravel_index(np.abs(gradients[name]).argmax(), gradients[name].shape)
        losses = []
        for sign in (1, -1):
            moved = dict(parameters, **{name: parameters[name].copy()})
            moved[name][place] += sign * step
            losses.append(float(twin(moved)[0]))
        difference = (losses[0] - losses[1]) / (2 * step)
        assert gradients[name][place] == pytest.approx(difference, rel=difference_rtol, abs=1e-9), name
    return output


def check_one_training_step(build, loss, learning_rate=1.0):
    """The parameters after a step of gradient descent, within the numerical policy of the same model in plain PyTorch.

    Args:
        build: makes the model out of `layers.Ours` or `layers.Plain`; without an argument, of bigkern's.
        loss: of (model, dtype).
    """
    model = build()
    twin, exact = plain_twin(model, build), plain_twin(model, build).double()
    for each in (model, twin, exact):
        optimizer = torch.optim.SGD(each.parameters(), lr=learning_rate)
        loss(each, next(each.parameters()).dtype).backward()
        optimizer.step()
    named = zip(model.named_parameters(), twin.parameters(), exact.parameters(), strict=True)
    for (name, ours), theirs, right in named:
        error, allowed = ((x.double() - right).abs().max().item() for x in (ours, theirs))
        assert error <= 2 * allowed + FEW * torch.finfo(ours.dtype).eps * right.abs().max().item(), name
