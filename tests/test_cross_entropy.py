import math

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern import functional, nn
from bigkern.reference import cross_entropy as reference
from tests.support import assert_within_policy, max_error, to_oracle

NAN, INF = float("nan"), float("inf")


def class_count(shape):
    return shape[0] if len(shape) == 1 else shape[1]


def target_shape(shape):
    return () if len(shape) == 1 else (shape[0], *shape[2:])


def make(place, shape, dtype=torch.float32, probabilities=False, weighted=False):
    """(logits, target, weight or None)"""
    logits = (torch.randn(shape, device=place.device) * 3).to(dtype)
    classes = class_count(shape)
    if probabilities:
        target = torch.rand(shape, device=place.device).softmax(0 if len(shape) == 1 else 1).to(dtype)
    else:
        target = torch.randint(classes, target_shape(shape), device=place.device)
    return logits, target, torch.rand(classes, device=place.device).to(dtype) if weighted else None


def extended(value):
    """In more digits than float64 where the machine has them, so that the oracle's own rounding is out of the way."""
    value = to_oracle(value)
    return value.astype(np.longdouble) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


def oracle_of(logits, target, weight, grad_loss, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """(loss, gradient of logits, gradient of probabilities or None), in float64 or better, in the shapes of the op."""
    probabilities = target.shape == logits.shape
    batched = logits.unsqueeze(0) if logits.ndim == 1 else logits
    n, c = batched.shape[:2]
    x = extended(batched.reshape(n, c, batched.shape[2:].numel()))
    d = x.shape[2]
    t = extended(target).reshape((n, c, d) if probabilities else (n, d))
    w = extended(weight)
    options = (ignore_index, reduction, label_smoothing)
    loss, lse, total = reference.cross_entropy_forward(x, t, w, *options)
    grad_loss = extended(grad_loss).reshape(loss.shape)
    grads = reference.cross_entropy_backward(grad_loss, x, t, w, lse, total, *options, probabilities)
    loss_shape = target_shape(logits.shape) if reduction == "none" else ()
    grad_target = grads[1].reshape(target.shape) if probabilities else None
    return loss.reshape(loss_shape), grads[0].reshape(logits.shape), grad_target


def run(function, logits, target, weight, **options):
    """(loss, upstream gradient, gradient of logits, gradient of probabilities or None)"""
    logits = logits.detach().requires_grad_()
    target = target.detach().requires_grad_(target.is_floating_point())
    loss = function(logits, target, weight, **options)
    grad_loss = torch.linspace(0.5, 2, loss.numel(), device=loss.device).reshape(loss.shape).to(loss.dtype)
    loss.backward(grad_loss)
    return loss.detach(), grad_loss, logits.grad, target.grad


def check(place, logits, target, weight=None, **options):
    """Loss and gradients within the numerical policy, and the inputs as they were."""
    before = logits.clone()
    with place.use():
        loss, grad_loss, grad_logits, grad_target = run(bigkern.cross_entropy, logits, target, weight, **options)
    assert torch.equal(logits.nan_to_num(7), before.nan_to_num(7))
    oracle = oracle_of(logits, target, weight, grad_loss, **options)
    theirs = run(torch_functional.cross_entropy, logits, target, weight, **options)
    assert loss.dtype == grad_logits.dtype == logits.dtype
    assert_within_policy(loss, oracle[0], theirs[0], what="loss")
    assert_within_policy(grad_logits, oracle[1], theirs[2], what="gradient of logits")
    if grad_target is not None:
        assert_within_policy(grad_target, oracle[2], theirs[3], what="gradient of target")
    return loss, grad_logits


SHAPES = [(1, 1), (3, 2), (4, 7), (2, 33), (5, 130), (7,), (2, 5, 1), (2, 3, 17), (3, 19, 4, 5), (2, 2, 3, 2, 3)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_oracle(place, shape, reduction):
    for dtype in place.dtypes:
        for probabilities in (False, True):
            check(place, *make(place, shape, dtype, probabilities)[:2], reduction=reduction)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(6, 9), (3, 40), (2, 5, 21)])
def test_weights_and_label_smoothing(place, shape, probabilities, label_smoothing):
    for dtype in place.dtypes:
        for weighted in (False, True):
            logits, target, weight = make(place, shape, dtype, probabilities, weighted)
            if weighted:
                weight[1] = 0
            for reduction in ("mean", "none"):
                check(place, logits, target, weight, reduction=reduction, label_smoothing=label_smoothing)


@pytest.mark.parametrize("shape", [(3, 1000), (2, 50257), (1, 70001), (600, 3), (1, 17, 1200), (40, 65, 33)])
def test_sizes_beyond_one_piece_or_block(place, shape):
    if place.slow and math.prod(shape) > 4000:
        shape = tuple(min(size, 40 if place.backend == "triton" else 20) for size in shape)
    for dtype in place.dtypes:
        for probabilities in (False, True):
            check(place, *make(place, shape, dtype, probabilities)[:2])
    check(place, *make(place, shape, weighted=True), label_smoothing=0.1)


@given(
    n=st.integers(0, 5), c=st.integers(1, 70), d=st.integers(0, 40), ranks=st.integers(2, 3), weighted=st.booleans(),
    reduction=st.sampled_from(["none", "mean", "sum"]), label_smoothing=st.sampled_from([0.0, 0.3]),
    probabilities=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, n, c, d, ranks, weighted, reduction, label_smoothing, probabilities, seed):
    torch.manual_seed(seed)
    shape = (n, c, d)[:ranks]
    if place.slow:
        shape = tuple(min(size, 9) for size in shape)
    logits, target, weight = make(place, shape, torch.float32, probabilities, weighted)
    if not probabilities:
        target[torch.rand(target.shape, device=place.device) < 0.2] = -100
    check(place, logits, target, weight, reduction=reduction, label_smoothing=label_smoothing)


def views_of(base):
    """The same logits [4, 6, 8] in other memory layouts."""
    yield base.transpose(1, 2).contiguous().transpose(1, 2)  # channels last
    yield base.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    yield torch.stack([base, base + 1], -1)[..., 0]  # no dimension is contiguous
    yield torch.cat([base, base], 1)[:, :6]
    yield base[:1].expand(4, 6, 8)
    yield base[:, :1].expand(4, 6, 8)
    yield base[:, :, :1].expand(4, 6, 8)


@pytest.mark.parametrize("probabilities", [False, True])
def test_any_layout(place, probabilities):
    base, target, _ = make(place, (4, 6, 8), probabilities=probabilities)
    for logits in views_of(base):
        check(place, logits, target)
        check(place, logits, target, reduction="none", label_smoothing=0.2)
        if probabilities:
            for layout in views_of(target):
                check(place, logits, layout, reduction="none")
    for matrix in (base[0], base[0].t().contiguous().t(), base[:, 0], base[:, :, 0], base[:1, 0].expand(8, 8)):
        # Not the logits' own softmax, which would leave nothing of the gradient but rounding.
        target = (
            torch.rand_like(matrix).softmax(1)
            if probabilities
            else torch.arange(matrix.shape[0], device=place.device) % 3
        )
        check(place, matrix, target)
    image = base.reshape(4, 6, 2, 4)
    for logits in (image.to(memory_format=torch.channels_last), image.transpose(2, 3), image[:, :, ::2]):
        target = torch.rand_like(logits).softmax(1) if probabilities else logits.argmin(1)
        check(place, logits, target, reduction="none")


def test_strided_targets_weights_and_gradients(place):
    logits = torch.randn(6, 5, 4, device=place.device, requires_grad=True)
    target = torch.randint(5, (4, 6, 2), device=place.device)[:, :, 1].t()
    weight = torch.rand(5, 2, device=place.device)[:, 0]
    check(place, logits, target, weight, reduction="none")
    with place.use():
        for transform in (lambda loss: loss.sum(), lambda loss: (loss.t() * weight[:4, None]).sum()):
            (grad,) = torch.autograd.grad(transform(bigkern.cross_entropy(logits, target, reduction="none")), logits)
            theirs = transform(torch_functional.cross_entropy(logits, target, reduction="none"))
            torch.testing.assert_close(grad, torch.autograd.grad(theirs, logits)[0])


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 1000])
@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 21)])
def test_ignored_targets_count_for_nothing(place, shape, ignore_index):
    logits, target, weight = make(place, shape, weighted=True)
    target.flatten()[::3] = ignore_index
    for reduction in ("none", "mean", "sum"):
        for label_smoothing in (0.0, 0.1):
            options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
            check(place, logits, target, weight, **options)
            loss, grad = check(place, logits, target, **options)
            assert (grad.movedim(1, -1)[target == ignore_index] == 0).all()
            assert reduction != "none" or (loss[target == ignore_index] == 0).all()


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 20)])
def test_nothing_left_to_average_gives_nan(place, shape):
    logits, target, _ = make(place, shape)
    for label_smoothing in (0.0, 0.1):
        loss, grad = check(place, logits, torch.full_like(target, -100), label_smoothing=label_smoothing)
        assert loss.isnan()
        assert (grad == 0).all()
        no_weight = torch.zeros(5, device=place.device)
        loss, grad = check(place, logits, target, no_weight, label_smoothing=label_smoothing)
        assert loss.isnan()
        assert grad.isnan().all()


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (3, 5, 0), (0, 0), (2, 0, 4)])
@pytest.mark.parametrize("probabilities", [False, True])
def test_empty_batches(place, shape, probabilities):
    logits = torch.randn(shape, device=place.device)
    target = torch.rand_like(logits) if probabilities else torch.full(target_shape(shape), -100, device=place.device)
    # As PyTorch, where it does not raise: it does for some of the shapes without classes.
    expected = {"none": torch.zeros(target_shape(shape)), "mean": torch.tensor(NAN), "sum": torch.tensor(0.0)}
    for reduction in expected:
        with place.use():
            loss, _, grad, _ = run(bigkern.cross_entropy, logits, target, None, reduction=reduction)
        torch.testing.assert_close(loss.cpu(), expected[reduction], equal_nan=True)
        assert grad.shape == shape


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("inner", [1, 20])
def test_non_finite_logits_give_what_torch_gives(place, inner, probabilities):
    logits = torch.randn(8, 37, inner, device=place.device)
    target = torch.randint(37, (8, inner), device=place.device)
    target[:, 0] = torch.tensor([0, 3, 3, 5, 5, 36, 1, -100])
    logits[0, 5] = logits[1, 36] = logits[2, 3] = -INF  # beside the target, in a tail, at the target
    logits[3, 20] = INF
    logits[4] = -INF
    logits[5, 30] = NAN
    logits[6, 1:] = -INF  # the target's class is impossible
    logits[7, 2] = INF  # an ignored row
    if probabilities:
        target = torch.rand_like(logits).softmax(1)
        target[2, 3] = 0  # 0 * log 0
    weight = torch.ones(37, device=place.device)
    weight[3] = 0
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.1}):
        check(place, logits, target, reduction="none", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [1, 20])
def test_a_large_common_offset_costs_no_digits(place, inner, dtype):
    if dtype not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    logits = torch.randint(-64, 64, (6, 50, inner), device=place.device, dtype=dtype) / 16
    target = torch.randint(50, (6, inner), device=place.device)
    for label_smoothing in (0.0, 0.1):
        for offset in (1024.0, -4096.0):  # exact in every dtype tested
            check(place, logits + offset, target, reduction="none", label_smoothing=label_smoothing)
    masked = logits.clone()
    masked[:, 0] = -1e9
    check(place, masked, target.clamp(min=1), reduction="none")


def test_very_confident_predictions(place):
    logits = torch.full((4, 12), -200.0, device=place.device)
    logits[:, 3] = 200
    loss, grad = check(place, logits, torch.tensor([3, 3, 0, 11], device=place.device), reduction="none")
    assert loss.tolist() == [0, 0, 400, 400]
    assert (grad[:2] == 0).all()


def test_reads_uint8_targets_and_weights_of_another_dtype(place):
    logits, target, weight = make(place, (5, 9, 4), torch.float16, weighted=True)
    with place.use():
        got = bigkern.cross_entropy(logits, target.to(torch.uint8), weight.float(), ignore_index=255)
        assert torch.equal(got, bigkern.cross_entropy(logits, target, weight))


@pytest.mark.parametrize(("input_dtype", "probability_dtype"), [(torch.float16, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.bfloat16)])  # fmt: skip
def test_probabilities_of_another_dtype_promote_as_in_torch(input_dtype, probability_dtype):
    logits = torch.randn(4, 6).to(input_dtype).requires_grad_()
    target = torch.rand(4, 6).to(probability_dtype).requires_grad_()
    loss = bigkern.cross_entropy(logits, target)
    theirs = torch_functional.cross_entropy(logits, target)
    assert loss.dtype == theirs.dtype
    torch.testing.assert_close(loss, theirs, rtol=2e-3, atol=2e-3)
    grads = torch.autograd.grad(loss, (logits, target))
    assert [grad.dtype for grad in grads] == [input_dtype, probability_dtype]


def test_the_documents_binary_example():
    """Labels [1, 0, 1, 0], predicted [0.3, 0.7, 0.6, 0.4]: the mean of -[y log p + (1 - y) log(1 - p)]."""
    labels = torch.tensor([1, 0, 1, 0])
    p = torch.tensor([0.3, 0.7, 0.6, 0.4], dtype=torch.float64)
    by_hand = -(math.log(0.3) + math.log(1 - 0.7) + math.log(0.6) + math.log(1 - 0.4)) / 4
    assert by_hand == pytest.approx(0.857399214045963, abs=2e-15)
    loss = bigkern.cross_entropy(torch.stack([1 - p, p], 1).log(), labels)
    assert loss.item() == pytest.approx(by_hand, abs=2e-15)


def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for shape in ((3, 70001), (700, 130), (2, 5, 9001)):
        logits = torch.randn(shape)
        target = torch.randint(shape[1], target_shape(shape))
        results = []
        for threads in (1, before):
            torch.set_num_threads(threads)
            results.append(run(bigkern.cross_entropy, logits * 9, target, None, label_smoothing=0.1)[::2])
        torch.set_num_threads(before)
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_first_and_second_derivatives(place, reduction, label_smoothing):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for shape in ((4, 5), (2, 3, 2)):
        logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        index = torch.randint(shape[1], target_shape(shape))
        index.view(-1)[0] = -100
        probabilities = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.rand(shape[1], dtype=torch.float64)
        options = {"reduction": reduction, "label_smoothing": label_smoothing}
        with place.use():
            by_index = lambda x: bigkern.cross_entropy(x, index, weight, **options)  # noqa: B023, E731
            by_probability = lambda x, t: bigkern.cross_entropy(x, t, weight, **options)  # noqa: B023, E731
            for check_gradient in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
                assert check_gradient(by_index, (logits,))
                assert check_gradient(by_probability, (logits, probabilities))


def test_gradient_of_weight_with_probabilities():
    logits, target = torch.randn(4, 5, 3, dtype=torch.float64), torch.rand(4, 5, 3, dtype=torch.float64)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        call = lambda w: bigkern.cross_entropy(logits, target, w, reduction=reduction, label_smoothing=0.1)  # noqa: B023, E731
        assert torch.autograd.gradcheck(call, (weight,))
        assert torch.autograd.gradgradcheck(call, (weight,))


def test_only_what_requires_grad_gets_one():
    logits, target = torch.randn(3, 4), torch.rand(3, 4, requires_grad=True)
    bigkern.cross_entropy(logits, target).backward()
    torch.testing.assert_close(target.grad, -torch.log_softmax(logits, 1) / 3)
    assert logits.grad is None
    assert not bigkern.cross_entropy(logits, target.detach()).requires_grad


def test_registration_is_complete():
    weight = torch.rand(5)
    for target in (torch.randint(5, (2, 3)), torch.rand(2, 5, 3, requires_grad=True)):
        logits = torch.randn(2, 5, 3, requires_grad=True)
        for reduction in ("mean", "none"):
            args = (logits, target, weight, -100, reduction, 0.1)
            opcheck(torch.ops.bigkern.cross_entropy_forward.default, args)
            outputs = bigkern.ops.cross_entropy.cross_entropy_forward(*args)
            loss, lse, total_weight = (output.detach() for output in outputs)
            args = (loss, logits, target, weight, lse, total_weight, *args[3:], target.is_floating_point())
            opcheck(torch.ops.bigkern.cross_entropy_backward.default, args)


@bigkern.use_backend("cpu")  # on auto, calls this small are PyTorch's own in eager mode
def test_compiles_with_dynamic_shapes():
    def step(logits, target):
        return bigkern.cross_entropy(logits * 2, target, label_smoothing=0.1) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (5, 6), (2, 5, 4), (4, 3, 7)):
        logits = torch.randn(shape, requires_grad=True)
        for target in (torch.randint(shape[1], target_shape(shape)), torch.rand(shape)):
            loss, expected = compiled(logits, target), step(logits, target)
            assert torch.equal(loss, expected)
            assert torch.equal(*(torch.autograd.grad(result, logits)[0] for result in (loss, expected)))
    with pytest.raises(IndexError, match=r"^Target 9 is out of bounds\.$"):
        compiled(torch.randn(3, 8), torch.tensor([0, 9, 1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_computes_in_float32_as_torch(dtype):
    logits, weight = torch.randn(4, 6).to(dtype).requires_grad_(), torch.rand(6)
    for target in (torch.randint(6, (4,)), torch.rand(4, 6)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = bigkern.cross_entropy(logits, target, weight)
            theirs = torch_functional.cross_entropy(logits, target, weight.to(logits.dtype))
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) == theirs.dtype
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.float(), torch.autograd.grad(theirs, logits)[0].float(), rtol=2e-2, atol=1e-3)


def test_functional_and_module_are_torchs():
    logits, target, weight = torch.randn(5, 7), torch.randint(7, (5,)), torch.rand(7)
    target[2] = 3
    arguments = (logits, target, weight, None, 3, None, "sum", 0.2)
    torch.testing.assert_close(functional.cross_entropy(*arguments), torch_functional.cross_entropy(*arguments))
    for size_average, reduce in ((True, None), (False, None), (None, False), (False, True)):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            got = functional.cross_entropy(logits, target, size_average=size_average, reduce=reduce)
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            expected = torch_functional.cross_entropy(logits, target, size_average=size_average, reduce=reduce)
        torch.testing.assert_close(got, expected)
    options = {"weight": weight, "ignore_index": 3, "reduction": "none", "label_smoothing": 0.1}
    module = nn.CrossEntropyLoss(**options)
    theirs = torch.nn.CrossEntropyLoss(**options)
    module.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(module(logits, target), theirs(logits, target))


@pytest.mark.parametrize("shape", [(3, 10), (2, 10, 40), (1, 40000)])
@pytest.mark.parametrize("bad", [-1, "classes", 2**40 + 1, -(2**62)])
def test_target_out_of_bounds(place, shape, bad):
    logits, target, weight = make(place, (3, 10) if place.slow else shape, weighted=True)
    bad = class_count(logits.shape) if bad == "classes" else bad
    target.view(-1)[-1] = bad
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        with place.use():
            if place.backend in ("triton", "cuda"):
                # A GPU is not made to wait for the answer: the loss is loud instead.
                loss = bigkern.cross_entropy(logits, target, **options)
                assert loss.view(-1)[-1].isnan()
                continue
            with pytest.raises(IndexError) as caught:
                bigkern.cross_entropy(logits, target, **options)
        assert str(caught.value) == f"Target {bad} is out of bounds."


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: bigkern.cross_entropy(x.long(), y), RuntimeError, "cross_entropy: input must be floating, got torch.int64"),
        (lambda x, y: bigkern.cross_entropy(x[0, 0], y[0]), RuntimeError, "cross_entropy: input must have a dimension of classes, got a scalar"),
        (lambda x, y: bigkern.cross_entropy(x, y.int()), RuntimeError, "cross_entropy: target must be int64 or uint8 class indices, or floating probabilities of input's shape [3, 5]; got torch.int32 of shape [3]"),
        (lambda x, y: bigkern.cross_entropy(x, y.float()), RuntimeError, "cross_entropy: target must be int64 or uint8 class indices, or floating probabilities of input's shape [3, 5]; got torch.float32 of shape [3]"),
        (lambda x, y: bigkern.cross_entropy(x, x.long()), RuntimeError, "Expected floating point type for target with class probabilities, got torch.int64 (a target of input's shape holds probabilities)"),
        (lambda x, y: bigkern.cross_entropy(x, x, ignore_index=1), RuntimeError, "ignore_index is not supported for floating point target"),
        (lambda x, y: bigkern.cross_entropy(x, y[:2]), ValueError, "Expected input batch_size (3) to match target batch_size (2)."),
        (lambda x, y: bigkern.cross_entropy(x[..., None], y[:, None].expand(3, 2)), RuntimeError, "Expected target size [3, 1], got [3, 2]"),
        (lambda x, y: bigkern.cross_entropy(x[0], y), ValueError, "For 1D input, 1D target must have size 1, but got target size: 3"),
        (lambda x, y: bigkern.cross_entropy(x, y, x[:, 0]), RuntimeError, "cross_entropy: weight tensor should be defined either for all 5 classes or no classes but got weight tensor of shape: [3]"),
        (lambda x, y: bigkern.cross_entropy(x, y, x[0].long()), RuntimeError, "cross_entropy: weight must be floating, got torch.int64"),
        (lambda x, y: bigkern.cross_entropy(x, y, x[0].requires_grad_()), RuntimeError, "cross_entropy: not differentiable with respect to weight where targets are class indices"),
        (lambda x, y: bigkern.cross_entropy(x, y.to("meta")), RuntimeError, "cross_entropy: input, target and weight must be on one device, got cpu, meta"),
        (lambda x, y: bigkern.cross_entropy(x, y, reduction="average"), ValueError, "average is not a valid value for reduction"),
        (lambda x, y: bigkern.cross_entropy(x, y, label_smoothing=1.5), RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: 1.5"),
        (lambda x, y: bigkern.cross_entropy(x, y, label_smoothing=NAN), RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: nan"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    assert str(caught.value) == message


def test_the_oracles_gradient_is_that_of_its_loss():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 4, 2)), rng.uniform(size=4)
    for target in (np.array([[0, 3], [-100, 1], [2, 2]]), rng.uniform(size=(3, 4, 2))):
        options = (-100, "mean", 0.1)
        _, lse, total = reference.cross_entropy_forward(x, target, weight, *options)
        soft = target.ndim == 3
        grads = reference.cross_entropy_backward(1.0, x, target, weight, lse, total, *options, soft)
        for which, array in enumerate((x, target) if soft else (x,)):
            numeric = np.zeros_like(array)
            for i in np.ndindex(array.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [x, target]
                    moved[which] = array.copy()
                    moved[which][i] += step
                    ends.append(reference.cross_entropy_forward(*moved, weight, *options)[0])
                numeric[i] = (ends[0] - ends[1]) / 2e-6
            assert max_error(grads[which], numeric) < 1e-8
