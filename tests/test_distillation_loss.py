import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern import functional
from bigkern.ops.distillation_loss import TRITON_TEMPERATURE
from bigkern.reference import distillation_loss as reference
from bigkern.registration import KERNELS
from tests.support import assert_within_policy, to_oracle

INF = float("inf")
REDUCTIONS = ("none", "mean", "sum")


def composed(student, teacher, temperature=1.0, reduction="mean"):
    """What a user without the op writes."""
    log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    losses = temperature**2 * F.kl_div(log_q, p, reduction="none").sum(-1)
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def run(function, student, teacher, **options):
    """(loss, upstream gradient, gradient of student)"""
    student = student.detach().requires_grad_()
    loss = function(student, teacher, **options)
    grad_loss = torch.linspace(0.5, 2, loss.numel(), device=loss.device).reshape(loss.shape).to(loss.dtype)
    return loss.detach(), grad_loss, *torch.autograd.grad(loss, student, grad_loss)


def check(place, student, teacher, temperature=1.0, reduction="mean"):
    student, teacher = student.to(place.device), teacher.to(place.device)
    options = {"temperature": temperature, "reduction": reduction}
    with place.use():
        loss, grad_loss, grad = run(bigkern.distillation_loss, student, teacher, **options)
    matrices = [to_oracle(t).reshape(-1, t.shape[-1]) for t in (student, teacher)]
    oracle, statistics = reference.distillation_loss_forward(*matrices, temperature, reduction)
    upstream = to_oracle(grad_loss).reshape(np.shape(oracle))
    (expected,) = reference.distillation_loss_backward(upstream, *matrices, statistics, temperature, reduction)
    their_loss, _, theirs = run(composed, student, teacher, **options)
    assert loss.dtype == grad.dtype == student.dtype
    assert_within_policy(loss, np.reshape(oracle, loss.shape), their_loss, what="loss")
    assert_within_policy(grad, expected.reshape(grad.shape), theirs, what="gradient of student")
    return loss, grad


def make(shape, dtype=torch.float32):
    return (torch.randn(shape) * 4).to(dtype), (torch.randn(shape) * 4).to(dtype)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 33), (2, 3, 130)])
def test_matches_oracle(place, shape):
    for dtype in place.dtypes:
        for reduction in REDUCTIONS:
            for temperature in (1.0, 2.5):
                check(place, *make(shape, dtype), temperature, reduction)


def test_sizes_beyond_one_piece_or_block(place):
    for dtype in place.dtypes:
        check(place, *make((2, 4500 if place.slow else 17001), dtype), 0.5)


@given(rows=st.integers(0, 6), classes=st.integers(1, 70), which=st.integers(0, 2), temperature=st.floats(0.2, 20))
def test_any_shape(place, rows, classes, which, temperature):
    torch.manual_seed(rows)
    if place.backend == "triton":
        temperature = min(temperature, TRITON_TEMPERATURE)
    check(place, *make((rows, classes)), temperature, REDUCTIONS[which])


def test_triton_declines_what_it_would_get_wrong():
    student, teacher = make((3, 5))
    with bigkern.use_backend("triton"), pytest.raises(RuntimeError, match=r"above a temperature of 2\.5 float32 sums"):
        bigkern.distillation_loss(student, teacher, 3.0)


def test_single_rows_at_high_temperatures_stay_within_the_policy_on_every_draw(place):
    """There the loss is temperature^2 times what two logarithms nearly leave of each other."""
    if place.backend == "triton":
        pytest.skip("declined: see test_triton_declines_what_it_would_get_wrong")
    for classes, temperature in ((2, 8.0), (15, 17.2), (300, 20.0)):
        student, teacher = make((300, classes))
        with place.use():
            losses = bigkern.distillation_loss(student, teacher, temperature, "none")
        matrices = (to_oracle(student), to_oracle(teacher))
        oracle, _ = reference.distillation_loss_forward(*matrices, temperature, "none")
        for draw in zip(losses, oracle, composed(student, teacher, temperature, "none"), strict=True):
            assert_within_policy(*draw, what=f"{classes} classes")


def test_any_layout(place):
    student, teacher = make((6, 4, 8))
    check(place, student.transpose(0, 2), teacher.transpose(0, 2).contiguous())
    check(place, student[:, ::2, 1:], teacher[:1, ::2, 1:].expand(6, 2, 7), reduction="none")


def test_equal_distributions_have_no_loss(place):
    student, _ = make((4, 50))
    loss, grad = check(place, student, student.clone(), 2.5)
    assert loss.abs() < 1e-5
    assert grad.abs().max() < 1e-8


def test_classes_that_the_teacher_excludes_count_for_nothing(place):
    student, teacher = make((3, 9))
    teacher[:, ::2] = -INF
    loss, grad = check(place, student, teacher, 2.0, "none")
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    student[:, 1] = -INF  # where the teacher has something, that is infinitely wrong
    with place.use():
        loss = bigkern.distillation_loss(student.to(place.device), teacher.to(place.device), reduction="none")
    assert (loss == INF).all()


def test_the_gradient_keeps_its_size_at_high_temperatures(place):
    """Hinton et al.: for high T, T (q - p) tends to the difference of the centred logits, over the classes."""
    if place.backend == "triton":
        pytest.skip("declined: see test_triton_declines_what_it_would_get_wrong")
    student, teacher = (logits.to(place.device) for logits in make((2, 10)))
    student.requires_grad_()
    with place.use():
        (grad,) = torch.autograd.grad(bigkern.distillation_loss(student, teacher, 500.0, "sum"), student)
    centred = [logits - logits.mean(1, keepdim=True) for logits in (student, teacher)]
    torch.testing.assert_close(grad, (centred[0] - centred[1]).detach() / 10, rtol=0.05, atol=0.01)


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    student, teacher = make((3, 4), torch.float64)
    student.requires_grad_()
    for reduction in REDUCTIONS:
        call = lambda s: bigkern.distillation_loss(s, teacher, 2.0, reduction)  # noqa: B023, E731
        with place.use():
            assert torch.autograd.gradcheck(call, (student,))
            assert torch.autograd.gradgradcheck(call, (student,))


def test_registration_is_complete():
    student, teacher = make((3, 5))
    for reduction in ("mean", "none"):
        args = (student.requires_grad_(), teacher, 2.0, reduction)
        opcheck(KERNELS["distillation_loss_forward"].op, args)
        loss, statistics = (t.detach() for t in KERNELS["distillation_loss_forward"](*args))
        opcheck(KERNELS["distillation_loss_backward"].op, (loss, student, teacher, statistics, 2.0, reduction))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    def step(student, teacher):
        return bigkern.distillation_loss(student * 2, teacher, 2.0) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (5, 6), (2, 7)):
        student, teacher = make(shape)
        student.requires_grad_()
        loss, expected = compiled(student, teacher), step(student, teacher)
        assert torch.equal(loss, expected)
        assert torch.equal(*(torch.autograd.grad(value, student)[0] for value in (loss, expected)))


def test_autocast_and_mixed_dtypes():
    student, teacher = make((3, 40))
    for autocast in (False, True):
        with bigkern.use_backend("cpu"), torch.autocast("cpu", torch.bfloat16, autocast):
            loss = bigkern.distillation_loss(student.bfloat16(), teacher.bfloat16() if autocast else teacher, 2.0)
        assert loss.dtype == torch.float32
        expected = composed(student.bfloat16().float(), teacher.bfloat16().float() if autocast else teacher, 2.0)
        torch.testing.assert_close(loss, expected)


def test_is_kl_div_of_softmaxes():
    student, teacher = make((3, 4))
    loss = functional.distillation_loss(student, teacher, 2.0)
    log_q, log_p = (F.log_softmax(logits / 2, 1) for logits in (student, teacher))
    torch.testing.assert_close(loss, 4 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, s, t: f(s.long(), t), RuntimeError, "distillation_loss: student must be floating, got torch.int64"),
        (lambda f, s, t: f(s, t.to("meta")), RuntimeError, "distillation_loss: teacher is on meta, student on cpu"),
        (lambda f, s, t: f(s, t[:, :2]), RuntimeError, "distillation_loss: student and teacher must have one shape [..., C], got [3, 4] and [3, 2]"),
        (lambda f, s, t: f(s, t, 0), ValueError, "distillation_loss: temperature must be above 0, got 0"),
        (lambda f, s, t: f(s, t.requires_grad_()), RuntimeError, "distillation_loss: not differentiable with respect to teacher; pass teacher.detach()"),
        (lambda f, s, t: f(s, t, reduction="batchmean"), ValueError, "batchmean is not a valid value for reduction"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.distillation_loss, *make((3, 4)))
    assert str(caught.value) == message


def test_the_oracles_gradient_is_that_of_its_loss():
    student, teacher = (to_oracle(logits) for logits in make((2, 3), torch.float64))
    _, statistics = reference.distillation_loss_forward(student, teacher, 2.0, "mean")
    (grad,) = reference.distillation_loss_backward(np.float64(1), student, teacher, statistics, 2.0, "mean")
    for i in range(student.size):
        ends = []
        for step in (1e-6, -1e-6):
            student.flat[i] += step
            ends.append(reference.distillation_loss_forward(student, teacher, 2.0, "mean")[0])
            student.flat[i] -= step
        assert abs(grad.flat[i] - (ends[0] - ends[1]) / 2e-6) < 1e-8
