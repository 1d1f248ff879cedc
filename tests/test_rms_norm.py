import pytest
import torch

import bigkern
from tests.norm_tests import NormTests
from tests.support import assert_within_policy, to_oracle


class TestRmsNorm(NormTests):
    name, parameters = "rms_norm", 1

    def test_default_eps_is_that_of_the_dtype_computed_in(self, place):
        for dtype in place.dtypes:
            input = torch.full((2, 6), 1e-4, device=place.device, dtype=dtype)
            with place.use():
                output = bigkern.rms_norm(input, (6,))
            eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            x = to_oracle(input)
            oracle = x / ((x**2).mean(1, keepdims=True) + eps) ** 0.5
            assert_within_policy(output, oracle, torch.nn.functional.rms_norm(input, (6,)))


X = torch.ones(3, 5)
ERRORS = [
    (lambda f: f(X, (4,)), RuntimeError, "Given normalized_shape=[4], expected input with shape [*4], but got input of size[3, 5]"),
    (lambda f: f(X, (2, 3, 5)), ValueError, "Input tensor must have at least 3 dimensions, but got 2"),
    (lambda f: f(X, []), RuntimeError, "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got normalized_shape = []"),
    (lambda f: f(X, [5], X[0, :4]), RuntimeError, "Expected weight to be of same shape as normalized_shape, but got weight of shape [4] and normalized_shape = [5]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_are_torchs(call, error, message):
    for function in (bigkern.rms_norm, torch.nn.functional.rms_norm):
        with pytest.raises(error) as caught:
            call(function)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.rms_norm(X, 5), TypeError, "rms_norm(): argument 'normalized_shape' must be tuple of ints, not int"),
        (lambda: bigkern.rms_norm(X.long(), [5]), RuntimeError, "rms_norm: input must be floating, got torch.int64"),
        (lambda: bigkern.rms_norm(X, [5], X[0].to("meta")), RuntimeError, "rms_norm: weight is on meta, input on cpu"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
