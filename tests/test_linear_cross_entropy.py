import json

import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern import functional, nn
from bigkern.ops import linear_cross_entropy as op
from bigkern.reference import linear_cross_entropy as reference
from tests.support import assert_within_policy, run_python, to_oracle

INF, NAN = float("inf"), float("nan")
NAMES = ("gradient of input", "gradient of linear_weight", "gradient of linear_bias")


def composed(input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", **options):
    """What a user without the op writes; torch 2.13's op is the same."""
    logits = torch_functional.linear(input, linear_weight, linear_bias)
    return torch_functional.cross_entropy(logits, target, weight, reduction=reduction, **options)


def make(place, rows, features, classes, dtype=torch.float32, bias=True, weighted=False):
    """(input, linear_weight, linear_bias or None, target, weight or None)"""
    input = torch.randn(rows, features, device=place.device).to(dtype)
    linear_weight = (2 * torch.randn(classes, features, device=place.device) / features**0.5).to(dtype)
    linear_bias = torch.randn(classes, device=place.device).to(dtype) if bias else None
    target = torch.randint(classes, (rows,), device=place.device)
    return (
        input,
        linear_weight,
        linear_bias,
        target,
        torch.rand(classes, device=place.device).to(dtype) if weighted else None,
    )


def run(function, input, linear_weight, linear_bias, target, weight, **options):
    """(loss, upstream gradient, gradients of input, linear_weight and linear_bias)"""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (input, linear_weight, linear_bias)]
    loss = function(*leaves[:2], target, linear_bias=leaves[2], weight=weight, **options)
    grad_loss = torch.linspace(0.5, 2, loss.numel(), device=loss.device).reshape(loss.shape).to(loss.dtype)
    found = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None], grad_loss)
    return loss.detach(), grad_loss, *found, *(None,) * (3 - len(found))


def check(place, input, linear_weight, linear_bias, target, weight=None, **options):
    """The loss, with and without gradients, and the gradients, within the numerical policy."""
    arguments = (input, linear_weight, linear_bias, target, weight)
    with place.use():
        loss, grad_loss, *grads = run(bigkern.linear_cross_entropy, *arguments, **options)
        alone = bigkern.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, **options
        )
    settings = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, **options}
    settings = [settings[name] for name in ("ignore_index", "reduction", "label_smoothing")]
    needs = (True, True, linear_bias is not None)
    oracle_loss, *_ = reference.linear_cross_entropy_forward(*map(to_oracle, arguments), *settings, *needs)
    oracle = reference.linear_cross_entropy_backward(
        to_oracle(grad_loss), *map(to_oracle, arguments), *settings, *needs
    )
    their_loss, _, *theirs = run(composed, *arguments, **options)
    assert loss.dtype == input.dtype
    assert_within_policy(loss, oracle_loss, their_loss, what="loss")
    assert_within_policy(alone, oracle_loss, their_loss, what="loss without gradients")
    for name, grad, expected, their in zip(NAMES, grads, oracle, theirs, strict=True):
        if grad is not None:
            assert grad.dtype == input.dtype
            assert_within_policy(grad, expected, their, what=name)
    return loss, grads


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (7, 17, 33), (30, 3, 67)])
def test_matches_oracle(place, shape, reduction):
    for dtype in place.dtypes:
        check(place, *make(place, *shape, dtype), reduction=reduction)
        arguments = make(place, *shape, dtype, bias=False, weighted=True)
        arguments[3][::3] = -100
        check(place, *arguments, reduction=reduction, label_smoothing=0.25)


def test_sizes_beyond_one_piece_tile_or_chunk(place, monkeypatch):
    if place.backend == "triton" and place.slow:
        from bigkern.kernels import linear_cross_entropy as kernels

        monkeypatch.setattr(kernels, "CHUNK_BYTES", 0)
        monkeypatch.setattr(kernels, "FEWEST_CHUNK_ROWS", 32)
    shapes = [(70, 40, 70)] if place.slow else [(600, 20, 40), (70, 600, 2500), (1100, 7, 3)]
    for shape in shapes:
        for dtype in place.dtypes[:3] if shape[0] == 70 else place.dtypes[:1]:
            arguments = make(place, *shape, dtype, weighted=True)
            arguments[3][::5] = -100
            for reduction in ("mean", "none") if dtype == torch.float32 else ("mean",):
                check(place, *arguments, reduction=reduction, label_smoothing=0.1)


@given(
    rows=st.integers(0, 40), features=st.integers(1, 40), classes=st.integers(1, 70), weighted=st.booleans(),
    reduction=st.sampled_from(["none", "mean", "sum"]), label_smoothing=st.sampled_from([0.0, 0.3]),
    ignore_index=st.sampled_from([-100, 0, -1]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, rows, features, classes, weighted, reduction, label_smoothing, ignore_index, seed):
    assume(not place.slow or rows * features * classes <= 4000)
    torch.manual_seed(seed)
    arguments = make(place, rows, features, classes, bias=seed % 2 == 0, weighted=weighted)
    arguments[3][torch.rand(rows, device=place.device) < 0.2] = ignore_index
    options = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    check(place, *arguments, **options)


def test_any_layout(place):
    input, linear_weight, linear_bias, target, weight = make(place, 6, 10, 12, weighted=True)
    layouts = (
        (input.t().contiguous().t(), linear_weight.t().contiguous().t()),
        (torch.stack([input, input], 2)[..., 0], linear_weight[:, :1].expand(12, 10)),
        (input[:1].expand(6, 10), linear_weight.flip(0)[::2].repeat(2, 1)[:12]),
    )
    strided = torch.stack([linear_bias, weight], 1)
    for x, w in layouts:
        check(place, x, w, strided[:, 0], torch.stack([target, target], 1)[:, 1], strided[:, 1], reduction="none")
        check(place, x, w, strided[:, 0], target, strided[:, 1], label_smoothing=0.1)


def test_nothing_left_to_average_gives_nan_and_no_gradient(place):
    for rows, target in ((4, -100), (0, 0)):
        input, linear_weight, linear_bias, targets, _ = make(place, rows, 3, 5)
        targets.fill_(target)
        for reduction in ("mean", "sum", "none"):
            loss, grads = check(place, input, linear_weight, linear_bias, targets, reduction=reduction)
            assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
            assert all((grad == 0).all() for grad in grads)


def test_confident_and_infinite_logits(place):
    input = torch.full((4, 1), 1.0, device=place.device)
    linear_weight = torch.full((12, 1), -200.0, device=place.device)
    linear_weight[3] = 200
    target = torch.tensor([3, 3, 0, 11], device=place.device)
    loss, grads = check(place, input, linear_weight, None, target, reduction="none")
    assert loss.tolist() == [0, 0, 400, 400]
    assert (grads[0][:2] == 0).all()
    large = torch.full((12, 1), 3000.0, device=place.device) + torch.arange(12, device=place.device)[:, None]
    check(place, input, large, None, target)
    for value in (INF, -INF, NAN):
        bias = torch.zeros(12, device=place.device)
        bias[:5] = value
        for label_smoothing in (0.0, 0.1):
            with place.use():
                loss = bigkern.linear_cross_entropy(
                    input, large, target, linear_bias=bias, reduction="none", label_smoothing=label_smoothing
                )
            theirs = composed(input, large, target, linear_bias=bias, reduction="none", label_smoothing=label_smoothing)
            torch.testing.assert_close(loss, theirs, equal_nan=True)


def test_scaled_float16_gradients_do_not_vanish(place):
    """A loss scale reaches the gradients before they are rounded."""
    arguments = make(place, 40, 8, 30, torch.float16)
    leaf = arguments[0].clone().requires_grad_()
    with place.use():
        loss = bigkern.linear_cross_entropy(leaf * 2**-8, arguments[1] * 2**-8, arguments[3])
        (scaled,) = torch.autograd.grad(loss * 2.0**14, leaf)
    exact = leaf.detach().double().requires_grad_()
    loss = composed(exact * 2**-8, arguments[1].double() * 2**-8, arguments[3])
    (expected,) = torch.autograd.grad(loss * 2.0**14, exact)
    assert_within_policy(scaled, to_oracle(expected), None)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_first_and_second_derivatives(place, reduction):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    arguments = make(place, 4, 3, 5, torch.float64, weighted=True)
    target, weight = arguments[3:]
    target[0] = -100
    leaves = [tensor.requires_grad_() for tensor in arguments[:3]]
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    with place.use():
        call = lambda x, w, b: bigkern.linear_cross_entropy(x, w, target, linear_bias=b, **options)  # noqa: E731
        assert torch.autograd.gradcheck(call, leaves, check_forward_ad=place.backend == "torch")
        assert torch.autograd.gradgradcheck(call, leaves)


def test_the_same_graph_gives_its_gradients_twice(place):
    input, linear_weight, linear_bias, target, _ = make(place, 5, 4, 6)
    leaves = [tensor.requires_grad_() for tensor in (input, linear_weight, linear_bias)]
    with place.use():
        loss = bigkern.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        for grad in first:
            grad.zero_()
        second = torch.autograd.grad(3 * loss, leaves)
    for grad, their in zip(second, run(composed, input, linear_weight, linear_bias, target, None)[2:], strict=True):
        torch.testing.assert_close(grad, 6 * their)  # run's upstream gradient is 0.5


def test_only_what_requires_grad_gets_one(place):
    input, linear_weight, linear_bias, target, _ = make(place, 5, 4, 6)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        leaves = [
            t.detach().requires_grad_(w) for t, w in zip((input, linear_weight, linear_bias), wanted, strict=True)
        ]
        with place.use():
            bigkern.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2]).backward()
        assert [leaf.grad is not None for leaf in leaves] == list(wanted)


def test_losses_at_several_positions():
    input, weight = torch.randn(3, 4), torch.rand(6)
    linear_weight, linear_bias = torch.randn(6, 2, 5, 4, requires_grad=True), torch.randn(6, 2, 5)
    target = torch.randint(6, (3, 2, 5))
    target[0, 1, 2] = -100
    logits = (torch.einsum("nf,cijf->ncij", input, linear_weight) + linear_bias).detach().requires_grad_()
    for reduction in ("none", "mean", "sum"):
        options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
        with bigkern.use_backend("cpu"):
            loss = bigkern.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)
        theirs = torch_functional.cross_entropy(logits, target, **options)
        torch.testing.assert_close(loss, theirs)
        (grad,) = torch.autograd.grad(loss.sum(), linear_weight)
        (grad_logits,) = torch.autograd.grad(theirs.sum(), logits)
        torch.testing.assert_close(grad, torch.einsum("ncij,nf->cijf", grad_logits, input))


def test_probabilities_and_single_samples():
    linear_weight = torch.randn(6, 4)
    for input, target in (
        (torch.randn(3, 4), torch.rand(3, 6).softmax(1)),
        (torch.randn(4), torch.rand(6)),
        (torch.randn(4), torch.tensor(2)),
        (torch.randn(3, 4), torch.tensor([0, 5, 2], dtype=torch.uint8)),
    ):
        for reduction in ("none", "mean"):
            with bigkern.use_backend("cpu"):
                loss = bigkern.linear_cross_entropy(input, linear_weight, target, reduction=reduction)
            torch.testing.assert_close(loss, composed(input, linear_weight, target, reduction=reduction))


def test_registration_is_complete():
    for reduction, needs in (("mean", (True, True, True)), ("none", (False, False, False))):
        tensors = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        args = (*tensors, torch.randint(5, (3,)), torch.rand(5), -100, reduction, 0.1, *needs)
        opcheck(torch.ops.bigkern.linear_cross_entropy_forward.default, args)
        grad_loss = torch.rand(3 if reduction == "none" else ())
        opcheck(torch.ops.bigkern.linear_cross_entropy_backward.default, (grad_loss, *args[:8], True, True, True))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    def step(input, linear_weight, target):
        return bigkern.linear_cross_entropy(input * 2, linear_weight, target, label_smoothing=0.1, ignore_index=1) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, features, classes in ((3, 8, 5), (5, 6, 9), (7, 4, 4)):
        leaves = [torch.randn(rows, features, requires_grad=True), torch.randn(classes, features, requires_grad=True)]
        target = torch.randint(classes, (rows,))
        target[1] = 1
        loss, expected = compiled(*leaves, target), step(*leaves, target)
        assert torch.equal(loss, expected)
        for grad, eager in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
            assert torch.equal(grad, eager)
        with torch.no_grad():
            assert torch.equal(compiled(*leaves, target), step(*leaves, target))
    with pytest.raises(IndexError, match=r"^Target 9 is out of bounds\.$"):
        compiled(torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 9, 1]))


def test_autocast_is_as_torchs():
    input, weight, target = torch.randn(4, 6, requires_grad=True), torch.rand(5), torch.randint(5, (4,))
    linear_weight = torch.randn(5, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = bigkern.linear_cross_entropy(input, linear_weight, target, weight=weight)
        theirs = composed(input, linear_weight, target, weight=weight)
    exact = composed(input.double(), linear_weight.double(), target, weight=weight.double())
    assert loss.dtype == theirs.dtype == torch.float32
    assert_within_policy(loss.detach(), to_oracle(exact), theirs.detach(), torch.bfloat16)
    grads = [torch.autograd.grad(result, input)[0] for result in (loss, exact, theirs)]
    assert grads[0].dtype == torch.float32
    assert_within_policy(grads[0], to_oracle(grads[1]), grads[2], torch.bfloat16)


def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    input, linear_weight, target = torch.randn(300, 20), torch.randn(4500, 20), torch.randint(4500, (300,))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with bigkern.use_backend("cpu"):
            loss, _, *grads = run(bigkern.linear_cross_entropy, input, linear_weight, None, target, None)
            alone = bigkern.linear_cross_entropy(input, linear_weight, target)
        results.append((loss, alone, *grads[:2]))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


PEAK_MEMORY = """
import json, resource, torch, bigkern
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
torch.set_num_threads(2)
def grow(rows, classes, gradients):
    input, weight = torch.randn(rows, 16), torch.randn(classes, 16)
    target = torch.randint(classes, (rows,))
    input.requires_grad_(gradients), weight.requires_grad_(gradients)
    before = peak()
    loss = bigkern.linear_cross_entropy(input, weight, target)
    if gradients:
        loss.backward()
    return peak() - before
with bigkern.use_backend("cpu"):
    grow(64, 64, True)
    alone = grow(6000, 16000, False)
    print(json.dumps([alone, grow(6000, 16000, True)]))
"""


def test_memory_stays_far_below_the_logits():
    """6000 rows of 16000 classes are 384 MB of logits, of which PyTorch keeps two copies and makes a third."""
    alone, with_gradients = json.loads(run_python(PEAK_MEMORY))
    logits = 6000 * 16000 * 4
    assert alone < logits / 20
    # A chunk of logits (32 MiB) and what the products pack.
    assert with_gradients < logits / 6


def test_functional_and_module_are_torchs():
    input, target = torch.randn(5, 7), torch.randint(9, (5,))
    target[2] = 3
    linear_weight = torch.randn(9, 7)
    options = {"linear_bias": torch.randn(9), "weight": torch.rand(9), "reduction": "sum", "label_smoothing": 0.2}
    loss = functional.linear_cross_entropy(input, linear_weight, target, ignore_index=3, **options)
    torch.testing.assert_close(loss, composed(input, linear_weight, target, ignore_index=3, **options))
    if not hasattr(torch.nn, "LinearCrossEntropyLoss"):
        return
    options = {"bias": True, "weight": torch.rand(9), "reduction": "none", "ignore_index": 3, "out_features": (2,)}
    module, theirs = nn.LinearCrossEntropyLoss(7, 9, **options), torch.nn.LinearCrossEntropyLoss(7, 9, **options)
    module.load_state_dict(theirs.state_dict())
    target = torch.randint(9, (5, 2))
    torch.testing.assert_close(module(input, target), theirs(input, target))


@pytest.mark.parametrize("bad", [-1, 9, 2**40 + 1])
def test_target_out_of_bounds(place, bad):
    input, linear_weight, _, target, weight = make(place, 3, 4, 9, weighted=True)
    target[-1] = bad
    for options in ({}, {"weight": weight}, {"reduction": "none", "label_smoothing": 0.1}):
        with place.use():
            if place.backend == "triton":  # a GPU is not made to wait for the answer: the loss is loud instead
                loss = bigkern.linear_cross_entropy(input, linear_weight, target, **options)
                assert loss.view(-1)[-1].isnan()
                continue
            with pytest.raises(IndexError) as caught:
                bigkern.linear_cross_entropy(input, linear_weight, target, **options)
        assert str(caught.value) == f"Target {bad} is out of bounds."


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, x, w, y: f(x.long(), w, y), RuntimeError, "linear_cross_entropy: input must be floating, got torch.int64"),
        (lambda f, x, w, y: f(x[None], w, y), RuntimeError, "expected input with dimensionality 1 or 2, got 3"),
        (lambda f, x, w, y: f(x, w[0], y), RuntimeError, "expected linear_weight with dimensionality at least 2, got 1"),
        (lambda f, x, w, y: f(x, w[:, :3], y), RuntimeError, "expected equal input and linear_weight last dimensions (in_features), got 4 and 3, respectively"),
        (lambda f, x, w, y: f(x, w.double(), y), RuntimeError, "linear_cross_entropy: linear_weight must be torch.float32 as input, got torch.float64"),
        (lambda f, x, w, y: f(x, w.to("meta"), y), RuntimeError, "linear_cross_entropy: linear_weight is on meta, input on cpu"),
        (lambda f, x, w, y: f(x, w, y, linear_bias=x[0]), RuntimeError, "expected linear_bias shape (5,), got (4,)"),
        (lambda f, x, w, y: f(x, w, y, reduction="average"), ValueError, "average is not a valid value for reduction"),
        (lambda f, x, w, y: f(x, w, y, label_smoothing=2), RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: 2"),
        (lambda f, x, w, y: f(x, w, y.to("meta")), RuntimeError, "linear_cross_entropy: target is on meta, input on cpu"),
        (lambda f, x, w, y: f(x, w, x @ w.t(), ignore_index=1), RuntimeError, "ignore_index cannot be specified when target contains probabilities"),
        (lambda f, x, w, y: f(x, w, y.int()), RuntimeError, "linear_cross_entropy: target must be int64 or uint8 class indices, or floating probabilities; got torch.int32 of shape [3]"),
        (lambda f, x, w, y: f(x, w, y[:2]), ValueError, "Expected target size [3], got [2]"),
        (lambda f, x, w, y: f(x, w, y, weight=x[0]), RuntimeError, "linear_cross_entropy: weight tensor should be defined either for all 5 classes or no classes but got weight tensor of shape: [4]"),
        (lambda f, x, w, y: f(x, w, y, weight=w[:, 0].clone().requires_grad_()), RuntimeError, "linear_cross_entropy: not differentiable with respect to weight where targets are class indices"),
        (lambda f, x, w, y: f(x[0], w[:, None].expand(5, 2, 4), y[:2]), RuntimeError, "K-dimensional loss defined by linear_weight shape (5, 2, 4) requires batched input, (N, 4), got unbatched input with shape (4,)"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.linear_cross_entropy, torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))
    assert str(caught.value) == message


def test_the_oracles_gradient_is_that_of_its_loss():
    input, linear_weight, linear_bias = (
        t.double().numpy() for t in (torch.randn(3, 2), torch.randn(4, 2), torch.randn(4))
    )
    target, weight = torch.tensor([1, -100, 3]).numpy(), torch.rand(4).double().numpy()
    options = (-100, "mean", 0.1, True, True, True)
    arrays = [input, linear_weight, linear_bias]
    grads = reference.linear_cross_entropy_forward(*arrays, target, weight, *options)[1:]
    for array, grad in zip(arrays, grads, strict=True):
        for i in range(array.size):
            ends = []
            for step in (1e-6, -1e-6):
                array.flat[i] += step
                ends.append(reference.linear_cross_entropy_forward(*arrays, target, weight, *options)[0])
                array.flat[i] -= step
            assert abs(grad.flat[i] - (ends[0] - ends[1]) / 2e-6) < 1e-8


def test_small_calls_are_left_to_torch():
    arguments = (torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))
    (decision,) = bigkern.explain(bigkern.linear_cross_entropy, *arguments)
    assert decision.chosen == "torch"
    assert decision.reasons["cpu"] == op.SMALL_REASON
    assert torch.equal(bigkern.linear_cross_entropy(*arguments), composed(*arguments))
