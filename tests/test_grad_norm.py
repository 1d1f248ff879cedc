import math

import pytest
import torch
from torch.library import opcheck

import bigkern
from bigkern.nn.utils import clip_grad_norm_
from bigkern.ops.grad_norm import clip_grads_step
from tests.optimizer_cases import draw_tensors, in_one_line
from tests.support import assert_within_policy


@pytest.mark.parametrize("norm_type", [2.0, math.inf, 1.5])
def test_norm_and_clipped_gradients_match_the_oracle(place, norm_type):
    if place.slow and norm_type == 1.5:
        pytest.skip("left to PyTorch: no kernel")
    for dtype in place.dtypes if norm_type != 1.5 else [torch.float32]:
        if norm_type == 1.5 and place.backend == "cpu":
            continue
        grads = draw_tensors(dtype, place.device, large=not place.slow)
        exact = [grad.double() for grad in grads]
        oracle = torch.linalg.vector_norm(in_one_line(exact), norm_type)
        theirs = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float(), norm_type) for g in exact if g.numel()]), norm_type)  # fmt: skip
        for max_norm in (0.7, 1e6):
            scale = torch.tensor(4.0, device=place.device)
            with place.use():
                total_norm, grad_factor = bigkern.grad_norm(grads, max_norm, norm_type, scale)
                clipped = [grad.clone() for grad in grads]
                clip_grads_step(clipped, grad_factor)
            assert_within_policy(total_norm, oracle / 4, theirs.double() / 4, torch.float32)
            factor = min(max_norm / (total_norm.item() + 1e-6), 1) / 4
            assert grad_factor.item() == pytest.approx(factor, rel=1e-6)
            assert_within_policy(in_one_line(clipped), in_one_line(exact) * grad_factor.item(), None, dtype)


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_nan_and_infinity_give_what_pytorch_gives(place, norm_type):
    for bad in (math.nan, math.inf, -math.inf):
        for position in (0, 36):
            grads = [torch.ones(5, device=place.device), torch.ones(37, device=place.device)]
            grads[1][position] = bad
            leaves = [torch.zeros_like(grad).requires_grad_() for grad in grads]
            expected = [torch.zeros_like(grad).requires_grad_() for grad in grads]
            for leaf, other, grad in zip(leaves, expected, grads, strict=True):
                leaf.grad, other.grad = grad.clone(), grad.clone()
            with place.use():
                ours = clip_grad_norm_(leaves, 1.0, norm_type)
            theirs = torch.nn.utils.clip_grad_norm_(expected, 1.0, norm_type)
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.isinf(), theirs.isinf())
            for leaf, other in zip(leaves, expected, strict=True):
                torch.testing.assert_close(leaf.grad, other.grad, equal_nan=True)


def test_large_gradients_do_not_overflow_on_a_cpu():
    grads = [torch.full((1000,), 1e30)]
    assert bigkern.grad_norm(grads)[0].item() == pytest.approx(1e30 * math.sqrt(1000), rel=1e-6)


def test_the_norm_does_not_depend_on_the_number_of_threads():
    grads = [torch.randn(n) for n in (100_003, 5, 70_001)]
    norms, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(bigkern.grad_norm(grads)[0].item())
    finally:
        torch.set_num_threads(threads)
    assert len(set(norms)) == 1


def test_clip_grad_norm_is_pytorchs():
    for dtypes in ((torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.bfloat16, torch.float64, torch.float16)):
        leaves = [torch.zeros(4, 9, dtype=dtype, requires_grad=True) for dtype in dtypes]
        others = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        for leaf, other in zip(leaves[1:], others[1:], strict=True):  # the first has no gradient
            leaf.grad = torch.randn(4, 9).to(leaf.dtype)
            other.grad = leaf.grad.clone()
        ours, theirs = clip_grad_norm_(iter(leaves), 0.5), torch.nn.utils.clip_grad_norm_(iter(others), 0.5)
        assert ours.dtype == theirs.dtype
        # PyTorch rounds the norm of each gradient to that gradient's dtype.
        tolerance = 1e-6 if dtypes[0] == torch.float32 else 1e-2
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
        for leaf, other in zip(leaves[1:], others[1:], strict=True):
            torch.testing.assert_close(leaf.grad, other.grad, rtol=tolerance, atol=0)
    assert clip_grad_norm_(torch.zeros(3, requires_grad=True), 1.0).item() == 0
    leaves[1].grad[0] = math.inf
    messages = []
    for function, parameters in ((clip_grad_norm_, leaves), (torch.nn.utils.clip_grad_norm_, leaves)):
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped") as caught:
            function(parameters, 1.0, error_if_nonfinite=True)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.warns(UserWarning, match="`parameters` is an empty generator"):
        clip_grad_norm_((p for p in []), 1.0)


def test_registration_is_complete():
    grads = draw_tensors()
    for scale, norm_type in ((None, 2.0), (torch.tensor(2.0), math.inf)):
        opcheck(torch.ops.bigkern.grad_norm_forward.default, (grads, scale, norm_type, 1.0))
    opcheck(torch.ops.bigkern.clip_grads_step.default, (grads, torch.tensor(0.5)))


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([], ValueError, "grad_norm: there must be at least one gradient"),
        ([torch.ones(3, dtype=torch.int32)], TypeError, "grad_norm: grads must be floating, got torch.int32"),
        ([torch.ones(3).to_sparse()], TypeError, "grad_norm: grads must be dense, got torch.sparse_coo"),
    ],
)
def test_errors_say_what_is_wrong(grads, error, message):
    with pytest.raises(error) as caught:
        bigkern.grad_norm(grads)
    assert str(caught.value) == message
