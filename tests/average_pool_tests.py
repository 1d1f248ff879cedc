"""The tests that avg_pool2d and adaptive_avg_pool2d have in common; each test file subclasses `AveragePoolTests`."""

import importlib

import pytest
import torch
import torch.nn.functional as F

import bigkern
from tests.support import assert_within_policy, to_oracle

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def run(function, input, grad_output, options):
    """(output, gradient)"""
    leaf = input.detach().requires_grad_()
    output = function(leaf, *options)
    return output.detach(), torch.autograd.grad(output, leaf, grad_output)[0]


class AveragePoolTests:
    """`name`: the op; `cases`: (shape, options); `flat`: what a kernel takes for the options, given the input."""

    name: str
    cases: tuple

    def flat(self, input, options):
        raise NotImplementedError

    def flat_backward(self, input, options):
        """What a backward kernel takes after grad_output."""
        return *input.shape[2:], *self.flat(input, options)

    @property
    def ours(self):
        return getattr(bigkern, self.name)

    @property
    def theirs(self):
        return getattr(F, self.name)

    def check(self, place, input, options, what="", grad_output=None):
        """Output and gradient within the numerical policy, and the input as it was."""
        before = input.clone()
        shape = self.theirs(input, *options).shape
        if grad_output is None:
            grad_output = torch.randn(shape, device=place.device).to(input.dtype)
        with place.use():
            output, grad = run(self.ours, input, grad_output, options)
        assert torch.equal(input, before)
        other, other_grad = run(self.theirs, input, grad_output, options)
        module = importlib.import_module(f"bigkern.reference.{self.name}")
        flat = self.flat(input, options)
        (right,) = getattr(module, f"{self.name}_forward")(to_oracle(input), *flat)
        (right_grad,) = getattr(module, f"{self.name}_backward")(
            to_oracle(grad_output), *self.flat_backward(input, options)
        )
        assert output.dtype == grad.dtype == input.dtype
        assert_within_policy(output, right, other, what=f"{what} output")
        assert_within_policy(grad, right_grad, other_grad, what=f"{what} gradient")
        return output

    def test_matches_oracle(self, place):
        for shape, options in self.cases:
            for dtype in place.dtypes:
                for layout in LAYOUTS:
                    input = torch.randn(shape, device=place.device).to(dtype).to(memory_format=layout)
                    output = self.check(place, input, options, f"{shape} {options} {dtype} {layout}")
                    assert output.is_contiguous(memory_format=layout)

    def test_any_layout(self, place):
        input = torch.randn(2, 4, 9, 8, device=place.device)
        options = self.cases[0][1]
        for layout in (
            input.transpose(2, 3),
            torch.cat([input, input], 1)[:, 2:6],
            torch.cat([input, input], 1).to(memory_format=torch.channels_last)[:, 2:6],
            input[:, :1].expand(2, 4, 9, 8),
        ):
            self.check(place, layout, options)
        shape = self.theirs(input, *options).shape
        grad_output = torch.randn(shape, device=place.device)
        for grad in (grad_output.to(memory_format=torch.channels_last), grad_output[:1, :1, :1].expand(shape)):
            self.check(place, input, options, grad_output=grad)
        with place.use():
            assert torch.equal(self.ours(input[0], *options), self.ours(input, *options)[0])

    def test_nan_stays_in_its_windows(self, place):
        for layout in LAYOUTS:
            input = torch.randn(1, 20, 9, 9, device=place.device).to(memory_format=layout)
            input[0, 1, 4, 4], input[0, 17, 0, 0] = float("nan"), float("inf")
            options = self.cases[0][1]
            with place.use():
                output = self.ours(input, *options)
            torch.testing.assert_close(output, self.theirs(input, *options), equal_nan=True)

    def test_empty_batch(self, place):
        input = torch.randn(0, 3, 8, 8, device=place.device, requires_grad=True)
        with place.use():
            output = self.ours(input, *self.cases[0][1])
            output.sum().backward()
        assert output.shape == self.theirs(input, *self.cases[0][1]).shape
        assert input.grad.shape == input.shape

    @bigkern.use_backend("cpu")
    def test_fewer_threads_give_the_same_bits(self):
        before = torch.get_num_threads()
        for layout in LAYOUTS:
            input = torch.randn(3, 20, 40, 40).to(memory_format=layout)
            options, results = self.cases[1][1], []
            grad_output = torch.randn(self.theirs(input, *options).shape)
            for threads in (1, max(before, 4)):
                torch.set_num_threads(threads)
                results.append(run(self.ours, input, grad_output, options))
            torch.set_num_threads(before)
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_first_and_second_derivatives(self, place):
        if torch.float64 not in place.dtypes:
            pytest.skip("float64 is left to PyTorch there")
        for layout in LAYOUTS:
            input = torch.randn(2, 2, 5, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
            with place.use():
                call = lambda x: self.ours(x, *self.cases[1][1]) ** 2  # noqa: E731
                assert torch.autograd.gradcheck(call, input)
                assert torch.autograd.gradgradcheck(call, input)

    def test_registration_is_complete(self):
        module = importlib.import_module(f"bigkern.ops.{self.name}")
        forward, backward = getattr(module, f"{self.name}_forward"), getattr(module, f"{self.name}_backward")
        input = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
        flat = self.flat(input, self.cases[1][1])
        torch.library.opcheck(forward.op, (input, *flat))
        grad_output = torch.randn(forward(input.detach(), *flat).shape, requires_grad=True)
        torch.library.opcheck(backward.op, (grad_output, *self.flat_backward(input, self.cases[1][1])))

    @bigkern.use_backend("cpu")
    def test_compiles_with_dynamic_shapes(self):
        step = lambda input: self.ours(input * 2, *self.cases[1][1]).sin()  # noqa: E731
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape, layout in (((2, 3, 8, 9), 0), ((3, 4, 7, 7), 0), ((2, 5, 12, 10), 1)):
            input, found = torch.randn(shape).to(memory_format=LAYOUTS[layout]), []
            for function in (compiled, step):
                leaf = input.detach().requires_grad_()
                output = function(leaf)
                found.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_float32_and_small_calls_are_torchs(self):
        for size, dtype, chosen in ((4, "half", "torch"), (128, "half", "cpu"), (128, "float32", "torch")):
            (decision,) = bigkern.explain(self.ours, torch.randn(1, 3, size, size).to(getattr(torch, dtype)), 2)
            assert decision.chosen == chosen

    def check_error(self, call, message, functions):
        for function in functions:
            with pytest.raises(RuntimeError) as caught:
                call(function)
            assert str(caught.value) == message
