"""What holds for every loss that treats each element alone; a test file names the loss in a subclass."""

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern import functional
from bigkern.pointwise_loss import as_period
from bigkern.registration import KERNELS
from tests.support import assert_within_policy, to_oracle


class PointwiseLossTests:
    op: str
    reductions = ("none", "mean", "sum")
    settings: tuple[dict, ...] = ({},)  # arguments of the op beside input, target and reduction

    def draw(self, shape, dtype=torch.float32, **settings):
        """(input, target)"""
        return (torch.randn(shape) * 4).to(dtype), torch.rand(shape).to(dtype)

    def kernel_arguments(self, shape, reduction, **settings):
        """What follows input and target in the kernels' arguments."""
        return (reduction,)

    def ours(self, *args, **settings):
        return getattr(bigkern, self.op)(*args, **settings)

    def theirs(self, *args, **settings):
        return getattr(torch_functional, self.op)(*args, **settings)

    def run(self, function, input, target, **settings):
        """(loss, upstream gradient, gradients of input and target)"""
        leaves = [tensor.detach().requires_grad_() for tensor in (input, target)]
        loss = function(*leaves, **settings)
        grad_loss = torch.linspace(0.5, 2, loss.numel(), device=loss.device).reshape(loss.shape).to(loss.dtype)
        return loss.detach(), grad_loss, *torch.autograd.grad(loss, leaves, grad_loss)

    def check(self, place, input, target, reduction, **settings):
        """Loss and gradients within the numerical policy."""
        move = lambda value: value.to(place.device) if isinstance(value, torch.Tensor) else value  # noqa: E731
        input, target = move(input), move(target)
        settings = {name: move(value) for name, value in settings.items()}
        with place.use():
            loss, grad_loss, *grads = self.run(self.ours, input, target, reduction=reduction, **settings)
        their_loss, _, *theirs = self.run(self.theirs, input, target, reduction=reduction, **settings)
        assert loss.shape == their_loss.shape
        assert loss.dtype == their_loss.dtype
        rows = input.shape[0] if input.ndim else 1
        matrix = lambda t: to_oracle(t).reshape(rows, -1) if t.numel() else np.zeros((rows, 0))  # noqa: E731
        arguments = [to_oracle(value) for value in self.kernel_arguments(input.shape, reduction, **settings)]
        module = importlib.import_module(f"bigkern.reference.{self.op}")
        forward, backward = (getattr(module, f"{self.op}_{which}") for which in ("forward", "backward"))
        (oracle,) = forward(matrix(input), matrix(target), *arguments)
        grad_oracle = matrix(grad_loss) if reduction == "none" else to_oracle(grad_loss)
        expected = backward(grad_oracle, matrix(input), matrix(target), *arguments, True)
        assert_within_policy(loss, np.reshape(oracle, loss.shape), their_loss, what="loss")
        names = ("gradient of input", "gradient of target")
        for name, grad, values, their in zip(names, grads, expected, theirs, strict=True):
            assert_within_policy(grad, values.reshape(grad.shape), their, what=name)
        return loss, grads

    def test_matches_oracle(self, place):
        for settings in self.settings:
            for shape in ((), (1,), (7, 33), (2, 3, 17)):
                for dtype in place.dtypes:
                    for reduction in self.reductions:
                        self.check(place, *self.draw(shape, dtype, **settings), reduction, **settings)

    def test_sizes_beyond_one_chunk_or_block(self, place):
        shape = (3, 1001) if place.slow else (5, 4111)
        for settings in self.settings:
            for dtype in place.dtypes:
                for reduction in self.reductions[:2]:
                    self.check(place, *self.draw(shape, dtype, **settings), reduction, **settings)

    @given(
        shape=st.lists(st.integers(0, 9), min_size=0, max_size=4), which=st.integers(0, 9), choice=st.integers(0, 3),
        seed=st.integers(0, 99),
    )  # fmt: skip
    def test_any_shape(self, place, shape, which, choice, seed):
        torch.manual_seed(seed)
        settings = self.settings[which % len(self.settings)]
        self.check(place, *self.draw(shape, **settings), self.reductions[choice % len(self.reductions)], **settings)

    def test_any_layout(self, place):
        input, target = self.draw((6, 4, 8))
        for x, t in (
            (input.transpose(0, 2), target.transpose(0, 2).contiguous()),
            (input[:, ::2], target[:, 1::2]),
            (input[:1].expand(6, 4, 8), target[:, :1].expand(6, 4, 8)),
        ):
            for reduction in self.reductions:
                self.check(place, x, t, reduction)

    def test_first_and_second_derivatives(self, place):
        if torch.float64 not in place.dtypes:
            pytest.skip("float64 is left to PyTorch there")
        for settings in self.settings:
            leaves = [tensor.requires_grad_() for tensor in self.draw((3, 4), torch.float64, **settings)]
            for reduction in self.reductions:
                call = lambda x, t: self.ours(x, t, reduction=reduction, **settings)  # noqa: B023, E731
                with place.use():
                    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=place.backend == "torch")
                    assert torch.autograd.gradgradcheck(call, leaves)

    def test_only_what_requires_grad_gets_one(self, place):
        input, target = (tensor.to(place.device) for tensor in self.draw((3, 4)))
        for x, t in ((input.clone().requires_grad_(), target), (input, target.clone().requires_grad_())):
            with place.use():
                self.ours(x, t, reduction="sum").backward()
            assert (x.grad is not None, t.grad is not None) == (x.requires_grad, t.requires_grad)

    def test_wider_dtype_wins(self):
        input, target = self.draw((3, 4))
        for x, t in ((input.half(), target), (input, target.double())):
            with bigkern.use_backend("cpu"):
                loss = self.ours(x, t, reduction="sum")
            theirs = self.theirs(x.to(loss.dtype), t.to(loss.dtype), reduction="sum")
            assert loss.dtype == torch.promote_types(x.dtype, t.dtype)
            torch.testing.assert_close(loss, theirs)

    def test_fewer_threads_give_the_same_bits(self):
        before, results = torch.get_num_threads(), []
        input, target = self.draw((30, 2001))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with bigkern.use_backend("cpu"):
                results.append(self.run(self.ours, input, target, reduction="sum"))
        torch.set_num_threads(before)
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))

    def test_registration_is_complete(self):
        settings = self.settings[-1]
        input, target = (tensor.requires_grad_() for tensor in self.draw((2, 6), **settings))
        for reduction in self.reductions[:2]:
            rest = self.kernel_arguments(input.shape, reduction, **settings)
            opcheck(KERNELS[f"{self.op}_forward"].op, (input, target, *rest))
            grad_loss = torch.rand(2, 6) if reduction == "none" else torch.rand(())
            opcheck(KERNELS[f"{self.op}_backward"].op, (grad_loss, input, target, *rest, True))

    @bigkern.use_backend("cpu")
    def test_compiles_with_dynamic_shapes(self):
        def step(input, target):
            return self.ours(input * 2, target, reduction="sum") + 1

        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((3, 8), (5, 6), (2, 7)):
            leaves = [tensor.requires_grad_() for tensor in self.draw(shape)]
            loss, expected = compiled(*leaves), step(*leaves)
            assert torch.equal(loss, expected)
            for pair in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
                assert torch.equal(*pair)

    def test_autocast_computes_in_float32_as_torch(self):
        input, target = self.draw((3, 40), torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16), bigkern.use_backend("cpu"):
            loss, theirs = (function(input, target, reduction="sum") for function in (self.ours, self.theirs))
        assert loss.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(loss, theirs)

    def test_functional_takes_torchs_arguments(self):
        input, target = self.draw((3, 4))
        ours = getattr(functional, self.op)
        for size_average, reduce in ((True, None), (False, None), (None, False)):
            with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
                loss = ours(input, target, size_average=size_average, reduce=reduce)
            with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
                theirs = self.theirs(input, target, size_average=size_average, reduce=reduce)
            torch.testing.assert_close(loss, theirs)

    def test_small_calls_are_left_to_torch(self):
        (decision,) = bigkern.explain(self.ours, *self.draw((3, 4)), reduction="sum")
        assert decision.chosen == "torch"

    def test_errors_say_what_is_wrong(self):
        x = torch.rand(3, 4)
        for arguments, error, message in (
            ((x.long(), x), RuntimeError, f"{self.op}: input must be floating, got torch.int64"),
            ((x, x.long()), RuntimeError, f"{self.op}: target must be floating, got torch.int64"),
            ((x, x.to("meta")), RuntimeError, f"{self.op}: target is on meta, input on cpu"),
        ):
            with pytest.raises(error) as caught:
                self.ours(*arguments)
            assert str(caught.value) == message
        with pytest.raises(ValueError, match=r"^average is not a valid value for reduction$"):
            self.ours(x, x, reduction="average")

    def test_the_oracles_gradient_is_that_of_its_loss(self):
        for settings in self.settings:
            input, target = (to_oracle(t) for t in self.draw((2, 3), torch.float64, **settings))
            rest = [to_oracle(value) for value in self.kernel_arguments((2, 3), "mean", **settings)]
            module = importlib.import_module(f"bigkern.reference.{self.op}")
            forward, backward = (getattr(module, f"{self.op}_{which}") for which in ("forward", "backward"))
            grads = backward(np.float64(1), input, target, *rest, True)
            for array, grad in zip((input, target), grads, strict=True):
                for i in range(array.size):
                    ends = []
                    for step in (1e-6, -1e-6):
                        array.flat[i] += step
                        ends.append(forward(input, target, *rest)[0])
                        array.flat[i] -= step
                    assert abs(grad.flat[i] - (ends[0] - ends[1]) / 2e-6) < 1e-7


def periods(shape, *weights):
    """Weights as the kernels take them."""
    return tuple(None if weight is None else as_period(weight, shape, weight.dtype) for weight in weights)
