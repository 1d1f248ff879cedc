import pytest
import torch

import bigkern
from tests.norm_tests import NormTests


class TestLayerNorm(NormTests):
    name, parameters = "layer_norm", 2

    def test_bias_switch_of_the_module(self):
        ours = bigkern.nn.LayerNorm(6, bias=False)
        assert list(ours.state_dict()) == ["weight"]
        with bigkern.use_backend("cpu"):
            torch.testing.assert_close(ours(torch.ones(2, 6)), torch.zeros(2, 6))


X = torch.ones(3, 5)
ERRORS = [
    (lambda f: f(X, (4,)), RuntimeError, "Given normalized_shape=[4], expected input with shape [*, 4], but got input of size[3, 5]"),
    (lambda f: f(X, (2, 3, 5)), RuntimeError, "Given normalized_shape=[2, 3, 5], expected input with shape [*, 2, 3, 5], but got input of size[3, 5]"),
    (lambda f: f(X, []), RuntimeError, "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got normalized_shape = []"),
    (lambda f: f(X, [5], X[0, :4]), RuntimeError, "Expected weight to be of same shape as normalized_shape, but got weight of shape [4] and normalized_shape = [5]"),
    (lambda f: f(X, [5], X[0], X), RuntimeError, "Expected bias to be of same shape as normalized_shape, but got bias of shape [3, 5] and normalized_shape = [5]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_are_torchs(call, error, message):
    for function in (bigkern.layer_norm, torch.nn.functional.layer_norm):
        with pytest.raises(error) as caught:
            call(function)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.layer_norm(X, 5), TypeError, "layer_norm(): argument 'normalized_shape' must be tuple of ints, not int"),
        (lambda: bigkern.layer_norm(X, [5.0]), TypeError, "layer_norm(): argument 'normalized_shape' must be tuple of ints, but found element of type float at pos 0"),
        (lambda: bigkern.layer_norm(X.long(), [5]), RuntimeError, "layer_norm: input must be floating, got torch.int64"),
        (lambda: bigkern.layer_norm(X, [5], X[0].int()), RuntimeError, "layer_norm: weight must be floating, got torch.int32"),
        (lambda: bigkern.layer_norm(X, [5], None, X[0].to("meta")), RuntimeError, "layer_norm: bias is on meta, input on cpu"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
