"""The worked examples of the documents that the project starts from, recomputed.

Several results printed there are wrong; each test asserts the right value and says what stood there.
"""

import math

import numpy as np
import pytest
import torch

import bigkern
import bigkern.functional as F
from bigkern.models.mlp import MLP

LABELS = torch.tensor([1, 0, 1, 0])
PROBABILITIES = torch.tensor([0.3, 0.7, 0.6, 0.4], dtype=torch.float64)


def two_class_logits(probabilities):
    """Logits whose softmax is (1 - p, p)."""
    return torch.stack([torch.log1p(-probabilities), torch.log(probabilities)], 1)


def test_cross_entropy_of_four_labels():
    """-[y ln p + (1 - y) ln(1 - p)], term by term, and the mean."""
    losses = bigkern.cross_entropy(two_class_logits(PROBABILITIES), LABELS, reduction="none")
    by_hand = [-math.log(0.3), -math.log(1 - 0.7), -math.log(0.6), -math.log(1 - 0.4)]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-12)
    mean = bigkern.cross_entropy(two_class_logits(PROBABILITIES), LABELS)
    assert mean.item() == pytest.approx(0.857399, abs=1e-6)


def test_one_gradient_descent_step_lowers_the_loss():
    """The step goes against the gradient (p - y) / n. The documents add it, which moves the wrong way."""
    logit = torch.logit(PROBABILITIES).requires_grad_()
    loss = bigkern.cross_entropy(torch.stack([torch.zeros_like(logit), logit], 1), LABELS)
    loss.backward()
    by_hand = (PROBABILITIES - LABELS) / 4
    np.testing.assert_allclose(logit.grad, by_hand, rtol=1e-12)
    learning_rate = 0.1

    def loss_after(sign):
        moved = (logit + sign * learning_rate * logit.grad).detach()
        return bigkern.cross_entropy(torch.stack([torch.zeros_like(moved), moved], 1), LABELS)

    assert loss_after(-1) < loss < loss_after(+1)
    decrease = learning_rate * (by_hand**2).sum()
    assert (loss - loss_after(-1)).item() == pytest.approx(decrease.item(), rel=0.01)


def test_relu_and_sigmoid_of_three_numbers():
    """sigmoid(0) is one half; the documents print 0.5190."""
    x = torch.tensor([[-2.0, 0.0, 2.0]])
    identity = torch.eye(3)
    assert bigkern.linear_act(x, identity, activation="relu").tolist() == [[0, 0, 2]]
    sigmoid = bigkern.linear_act(x, identity, activation="sigmoid")
    np.testing.assert_allclose(sigmoid, [[0.11920292, 0.5, 0.88079708]], atol=1e-7)


def test_attention_of_one_query_and_one_key_is_the_value():
    """softmax over a single key is 1, whatever the score: the output is V. The documents divide by V."""
    query, key, value = (torch.tensor([[numbers]]) for numbers in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]))
    assert F.scaled_dot_product_attention(query, key, value).tolist() == [[[7, 8, 9]]]


def test_attention_of_three_queries_and_three_keys():
    """The same numbers read as three positions of one feature: softmax(q k^T) V row by row."""
    query, key, value = (
        torch.tensor(numbers, dtype=torch.float64).view(1, 3, 1)
        for numbers in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0])
    )
    output = F.scaled_dot_product_attention(query, key, value)
    for i, q in enumerate((1.0, 2.0, 3.0)):
        weights = [math.exp(q * k) for k in (4.0, 5.0, 6.0)]
        by_hand = sum(w * v for w, v in zip(weights, (7.0, 8.0, 9.0), strict=True)) / sum(weights)
        assert output[0, i, 0].item() == pytest.approx(by_hand, rel=1e-12)


def test_a_3_4_2_relu_network():
    """Small whole numbers, so that every layer can be followed by hand."""
    model = MLP((3, 4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]))
        model[0].bias.copy_(torch.tensor([0.0, -3, 1, 0]))
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [2, 0, -1, 5]]))
        model[1].bias.copy_(torch.tensor([0.5, -0.5]))
    # hidden = relu([1, 2 - 3, 3 + 1, -6]) = [1, 0, 4, 0]; out = [1 + 4 + 0.5, 2 - 4 - 0.5]
    assert model(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[5.5, -2.5]]


def test_the_784_64_10_network_has_50890_parameters():
    """The documents print 50,852."""
    assert sum(parameter.numel() for parameter in MLP((784, 64, 10)).parameters()) == 50_890
