"""avg_pool2d on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from tests.average_pool_tests import LAYOUTS, AveragePoolTests


class TestAvgPool2d(AveragePoolTests):
    name = "avg_pool2d"
    # kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    cases = (
        ((2, 3, 8, 8), (2, None, 0, False, True, None)),
        ((1, 17, 7, 6), (3, 2, 1, True, True, None)),
        ((1, 3, 7, 5), ((2, 3), (1, 2), (1, 0), True, False, None)),
        ((1, 2, 9, 10), (3, 1, 1, False, True, 5)),
        ((1, 2, 5, 7), (1, 3, 0, True, True, -2)),
        ((1, 1, 1, 1), (1, None, 0, False, True, None)),
    )

    def flat(self, input, options):
        kernel, stride, padding, ceil_mode, count_include_pad, divisor = options
        pairs = [v if isinstance(v, tuple) else (v, v) for v in (kernel, kernel if stride is None else stride, padding)]
        return *(number for pair in pairs for number in pair), ceil_mode, count_include_pad, divisor or 0

    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)),
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
        padded=st.booleans(), ceil_mode=st.booleans(), counted=st.booleans(), last=st.booleans(),
        seed=st.integers(0, 99),
    )  # fmt: skip
    def test_any_shape(self, place, sizes, kernel, stride, padded, ceil_mode, counted, last, seed):
        torch.manual_seed(seed)
        shape = (*sizes[:2], max(sizes[2], kernel[0]), max(sizes[3], kernel[1]))
        padding = tuple(k // 2 if padded else 0 for k in kernel)
        input = torch.randn(shape, device=place.device).to(memory_format=LAYOUTS[last])
        self.check(place, input, (kernel, stride, padding, ceil_mode, counted, None))

    def test_module_is_torchs(self):
        input, options = torch.randn(2, 3, 9, 9), (3, 2, 1, True, False, 4)
        with bigkern.use_backend("cpu"):
            torch.testing.assert_close(bigkern.nn.AvgPool2d(*options)(input), torch.nn.AvgPool2d(*options)(input))


X = torch.ones(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(X, 3, padding=2), "pad should be at most half of effective kernel size, but got pad=2, kernel_size=3 and dilation=1"),
        (lambda f: f(X, 3, stride=0), "stride should not be zero"),
        (lambda f: f(X, 3, padding=-1), "pad must be non-negative, but got pad: -1"),
        (lambda f: f(X, 8), "Given input size: (3x5x6). Calculated output size: (3x0x0). Output size is too small"),
        (lambda f: f(X, 2, divisor_override=0), "divisor must be not zero"),
        (lambda f: f(X, (2, 2, 2)), "avg_pool2d: kernel_size must either be a single int, or a tuple of two ints"),
    ],
)  # fmt: skip
def test_errors_are_torchs(call, message):
    TestAvgPool2d().check_error(call, message, (bigkern.avg_pool2d, F.avg_pool2d))


def test_errors_say_what_is_wrong():
    wrong = "avg_pool2d: input must be floating, got torch.int64"
    TestAvgPool2d().check_error(lambda f: f(X.long(), 2), wrong, (bigkern.avg_pool2d,))
