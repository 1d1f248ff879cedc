"""adaptive_avg_pool2d on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from tests.average_pool_tests import LAYOUTS, AveragePoolTests


class TestAdaptiveAvgPool2d(AveragePoolTests):
    name = "adaptive_avg_pool2d"
    cases = (
        ((2, 3, 7, 7), (1,)),
        ((1, 17, 7, 6), ((3, 4),)),
        ((1, 3, 5, 4), ((8, None),)),
        ((1, 1, 1, 1), (3,)),
    )

    def flat(self, input, options):
        pair = options[0] if isinstance(options[0], tuple) else options * 2
        return [size if wanted is None else wanted for wanted, size in zip(pair, input.shape[2:], strict=True)]

    def flat_backward(self, input, options):
        return tuple(input.shape[2:])

    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)),
        wanted=st.tuples(st.integers(1, 9), st.integers(1, 9)), last=st.booleans(), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_any_shape(self, place, sizes, wanted, last, seed):
        torch.manual_seed(seed)
        self.check(place, torch.randn(sizes, device=place.device).to(memory_format=LAYOUTS[last]), (wanted,))

    def test_large_window(self, place):
        size = 40 if place.slow else 230
        self.check(place, torch.randn(1, 2, size, size, device=place.device) + 3, (1,))

    def test_no_windows(self, place):
        input = torch.randn(2, 3, 4, 4, device=place.device, requires_grad=True)
        with place.use():
            output = bigkern.adaptive_avg_pool2d(input, (0, 2))
            output.sum().backward()
        assert output.shape == (2, 3, 0, 2)
        assert torch.equal(input.grad, torch.zeros_like(input))

    def test_module_is_torchs(self):
        input = torch.randn(2, 3, 9, 9)
        with bigkern.use_backend("cpu"):
            found = bigkern.nn.AdaptiveAvgPool2d((None, 4))(input)
        torch.testing.assert_close(found, torch.nn.AdaptiveAvgPool2d((None, 4))(input))


X = torch.ones(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(X, (-1, 3)), "adaptive_avg_pool2d: elements of output_size must be greater than or equal to 0 but received {-1, 3}"),
        (lambda f: f(X[0, 0], 2), "adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got [5, 6]"),
        (lambda f: f(X[:, :, :0], 2), "adaptive_avg_pool2d(): Expected input to have non-zero size for non-batch dimensions, but input has sizes [2, 3, 0, 6] with dimension 2 being empty"),
    ],
)  # fmt: skip
def test_errors_are_torchs(call, message):
    TestAdaptiveAvgPool2d().check_error(call, message, (bigkern.adaptive_avg_pool2d, F.adaptive_avg_pool2d))


def test_errors_say_what_is_wrong():
    check = TestAdaptiveAvgPool2d().check_error
    wrong = "adaptive_avg_pool2d: input must be floating, got torch.int64"
    check(lambda f: f(X.long(), 2), wrong, (bigkern.adaptive_avg_pool2d,))
    check(lambda f: f(X, (1, 2, 3)), "adaptive_avg_pool2d: output_size must be 2", (bigkern.adaptive_avg_pool2d,))
