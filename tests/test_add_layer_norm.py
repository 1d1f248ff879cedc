import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.add_layer_norm import add_layer_norm_backward, add_layer_norm_forward
from bigkern.reference import add_layer_norm as reference
from bigkern.reference.philox import dropout_keep_rows, philox4x32
from tests.norm_tests import extended
from tests.support import assert_within_policy, max_error, to_oracle

NAN, INF = float("nan"), float("inf")
NAMES = ("output", "sum", "grad_input", "grad_residual", "grad_weight", "grad_bias")
# A seed of 64 bits and a negative offset: every bit that the counter and the key take.
RNG_STATES = [(0, 0), (123, 4), (-(2**62) - 12345, -7), (2**63 - 1, 2**40 + 3)]


def draw(place, rows, columns, dtype=torch.float32):
    """[input, residual, weight, bias]"""
    shapes = ((rows, columns), (rows, columns), (columns,), (columns,))
    return [torch.randn(shape, device=place.device).to(dtype) for shape in shapes]


def state_of(place, rng_state):
    return None if rng_state is None else torch.tensor(rng_state, device=place.device)


def composed(input, residual, weight, bias, rng_state, dropout_p):
    """What a PyTorch user would write for this mask of dropout."""
    if rng_state is not None:
        keep = torch.from_numpy(dropout_keep_rows(to_oracle(rng_state), dropout_p, *input.shape)).to(input.device)
        input = input * keep / (1 - dropout_p)
    total = residual + input
    return F.layer_norm(total, input.shape[1:], weight, bias), total


def with_gradients(function, tensors, grads, rng_state, dropout_p):
    """The two results and the gradient of each tensor that is not None."""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    results = function(*tensors, rng_state, dropout_p)
    found = torch.autograd.grad(results, [t for t in tensors if t is not None], [g.to(results[0]) for g in grads])
    return [*(r.detach() for r in results), *found]


def kernel(input, residual, weight, bias, rng_state, dropout_p):
    return add_layer_norm_forward(input, residual, weight, bias, rng_state, 1e-5, dropout_p, True)[:2]


def check(place, tensors, rng_state=None, dropout_p=0.0, grads=None, what=""):
    """Both results and all gradients within the numerical policy."""
    rng_state = state_of(place, rng_state)
    dtype, shape = tensors[0].dtype, tensors[0].shape
    grads = grads or [torch.randn(shape, device=place.device).to(dtype) for _ in range(2)]
    with place.use():
        found = with_gradients(kernel, tensors, grads, rng_state, dropout_p)
    theirs = with_gradients(composed, tensors, grads, rng_state, dropout_p)
    arrays = [extended(t) for t in tensors]
    state = to_oracle(rng_state)
    output, total, mean, rstd = reference.add_layer_norm_forward(*arrays, state, 1e-5, dropout_p, True)
    grad_output, grad_sum = (extended(g) for g in grads)
    inputs = (grad_output, grad_sum, total, *arrays[2:], mean, rstd, state, dropout_p)
    grad_input, *others = reference.add_layer_norm_backward(*inputs, True, True, True)
    expected = [output, total, grad_input if rng_state is not None else others[0], *others]
    weight = 1 if arrays[2] is None else arrays[2]
    terms = np.abs(grad_output * weight) * rstd[:, None] + np.abs(grad_sum)  # what cancels in a short row
    names = [name for name, t in zip(NAMES[2:], tensors, strict=True) if t is not None]
    for name, mine, other in zip((*NAMES[:2], *names), found, theirs, strict=True):
        magnitude = terms if name in ("grad_input", "grad_residual") else None
        if name == "grad_weight":
            magnitude = (np.abs(grad_output) * np.abs((total - mean[:, None]) * rstd[:, None])).sum(0)
        right = expected[NAMES.index(name)]
        assert_within_policy(mine, right, other, what=f"{what} {name}", magnitude=magnitude)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 7), (7, 130), (37, 64), (2, 4097), (1, 9000), (40, 1030)])
def test_matches_oracle(place, shape):
    if place.slow:
        shape = (min(shape[0], 20), min(shape[1], 2051))  # two strips of rows, five blocks of columns
    for dtype in place.dtypes if not place.slow or shape[1] < 100 else (torch.bfloat16,):
        check(place, draw(place, *shape, dtype), what=f"{shape} {dtype}")
        check(place, draw(place, *shape, dtype), (77 + (5 << 32), 12), 0.3, what=f"{shape} {dtype} dropout")


@given(
    rows=st.integers(0, 40), columns=st.integers(1, 150), present=st.integers(0, 3), dropped=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, rows, columns, present, dropped, seed):
    torch.manual_seed(seed)
    tensors = [t if i < 2 or present >> (i - 2) & 1 else None for i, t in enumerate(draw(place, rows, columns))]
    check(place, tensors, (seed, 3) if dropped else None, 0.4 if dropped else 0.0)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_tensors(place, shape):
    with place.use():
        found = with_gradients(kernel, draw(place, *shape), [torch.ones(shape, device=place.device)] * 2, None, 0.0)
    assert [tuple(t.shape) for t in found] == [shape] * 4 + [shape[1:]] * 2
    assert all((grad == 0).all() for grad in found[4:])


def test_any_layout(place):
    _, _, weight, bias = draw(place, 6, 40)
    base = torch.randn(40, 6, device=place.device)
    strided, expanded = torch.stack([base.t(), base.t()], -1)[..., 0], base[:1, :1].expand(6, 40)
    dense = torch.randn(6, 40, device=place.device)
    for input, residual in ((base.t(), dense), (dense, strided), (expanded, dense), (strided, base.t())):
        check(place, [input, residual, torch.stack([weight, bias], 1)[:, 0], bias], (5, 6), 0.2)
    check(place, [dense, dense, weight, bias], (5, 6), 0.2, grads=[base.t(), expanded])


@pytest.mark.parametrize("dropout_p", [0.1, 0.999])
def test_mask_is_the_oracles(place, dropout_p):
    for rng_state in RNG_STATES:
        for shape in ((1, 1), (5, 7), (3, 66), (2, 1100)) if place.slow else ((1, 1), (37, 70), (3, 9001)):
            ones, zeros = torch.ones(shape, device=place.device), torch.zeros(shape, device=place.device)
            with place.use():
                _, total = kernel(ones, zeros, None, None, state_of(place, rng_state), dropout_p)
            keep = dropout_keep_rows(np.array(rng_state), dropout_p, *shape)
            assert np.array_equal(to_oracle(total != 0), keep)
            assert_within_policy(total, keep / (1 - dropout_p), None)


def test_an_element_has_the_word_of_its_position():
    keep = dropout_keep_rows(np.array([(3 << 32) + 9, 11]), 0.5, rows=5, columns=11)
    for row, column in ((0, 0), (4, 10), (2, 5), (3, 7)):
        word = philox4x32((row, column // 4, 0, 11), (9, 3))[column % 4]
        assert keep[row, column] == (word >= 2**31)


def test_post_norm_is_pre_norm_without_the_sum(place):
    for shape in ((8, 33), (2, 5003)):
        tensors = draw(place, *shape)
        with place.use():
            output, total = bigkern.add_layer_norm_with_sum(*tensors[:2], shape[1:], *tensors[2:])
            alone = bigkern.add_layer_norm(*tensors[:2], shape[1:], *tensors[2:])
            normalized = bigkern.layer_norm(total, shape[1:], *tensors[2:])
            without = add_layer_norm_forward(*tensors, None, 1e-5, 0.0, False)
        assert torch.equal(output, alone)
        assert torch.equal(output, without[0])
        assert without[1].numel() == 0
        torch.testing.assert_close(output, normalized, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(total, tensors[0] + tensors[1])


def test_one_of_the_results_is_enough_for_gradients(place):
    tensors = [t.requires_grad_() for t in draw(place, 9, 12)]
    with place.use():
        for pick in (0, 1):
            results = bigkern.add_layer_norm_with_sum(*tensors[:2], (12,), *tensors[2:])
            grads = torch.autograd.grad(results[pick].sin().sum(), tensors, allow_unused=True)
            right = torch.autograd.grad(composed(*tensors, None, 0.0)[pick].sin().sum(), tensors, allow_unused=True)
            for mine, other in zip(grads, right, strict=True):
                other = torch.zeros_like(mine) if other is None else other
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [37, 4200])
def test_non_finite_values_stay_in_their_row(place, columns):
    input, residual, weight, bias = draw(place, 4, columns)
    clean = input.clone()
    input[1, 5], residual[2, columns - 1] = NAN, INF
    state = state_of(place, (1, 2))
    with place.use():
        output, _ = kernel(input, residual, weight, bias, state, 0.2)
        right, _ = kernel(clean, residual, weight, bias, state, 0.2)
    assert torch.equal(output[[0, 3]], right[[0, 3]])
    assert output[[1, 2]].isnan().all()


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for shape in ((1, 9001), (70, 130), (17, 9001)):
        tensors = [torch.randn(shape), torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])]
        grads, results = [torch.randn(shape)] * 2, []
        for threads in (1, max(before, 4)):
            torch.set_num_threads(threads)
            results.append(with_gradients(kernel, tensors, grads, torch.tensor([1, 2]), 0.1))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for rng_state, dropout_p, present, save_sum in (
        (None, 0.0, False, True),
        ((3, 4), 0.4, True, True),
        ((3, 4), 0.4, True, False),
    ):
        options = (state_of(place, rng_state), 1e-5, dropout_p, save_sum)
        call = lambda *tensors: add_layer_norm_forward(*tensors, *options)[: 1 + options[-1]]  # noqa: B023, E731
        tensors = [t if i < 2 or present else None for i, t in enumerate(draw(place, 2, 3, torch.float64))]
        tensors = [None if t is None else t.requires_grad_() for t in tensors]
        with place.use():
            assert torch.autograd.gradcheck(call, tensors)
            assert torch.autograd.gradgradcheck(call, tensors)


def test_manual_seed_reproduces_forward_and_backward(place):
    tensors = [t.requires_grad_() for t in draw(place, 6, 50)]

    def call(seed, **options):
        torch.manual_seed(seed)
        with place.use():
            output = bigkern.add_layer_norm(*tensors[:2], (50,), *tensors[2:], dropout_p=0.5, **options)
            return output, *torch.autograd.grad(output.square().sum(), tensors)

    first, again, other = call(1), call(1), call(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    evaluated, right = call(1, training=False)[0], composed(*tensors, None, 0.0)[0]
    torch.testing.assert_close(evaluated, right, rtol=1e-5, atol=1e-5)


def test_dropping_everything_leaves_the_residual(place):
    tensors = [t.requires_grad_() for t in draw(place, 3, 8)]
    with place.use():
        output, total = bigkern.add_layer_norm_with_sum(*tensors[:2], (8,), *tensors[2:], dropout_p=1.0)
        (grad,) = torch.autograd.grad(output.sum() + total.sum(), tensors[0])
    assert torch.equal(total, tensors[1])
    assert (grad == 0).all()


@pytest.mark.parametrize("dropped", [False, True])
def test_registration_is_complete(dropped):
    rng_state, dropout_p = (torch.tensor([3, 4]), 0.5) if dropped else (None, 0.0)
    shapes = ((3, 6), (3, 6), (6,), (6,))
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    arguments = (*tensors, rng_state, 1e-5, dropout_p, True)
    torch.library.opcheck(add_layer_norm_forward.op, arguments)
    _, total, mean, rstd = (t.detach() for t in add_layer_norm_forward(*arguments))
    grads = [torch.randn(3, 6, requires_grad=True) for _ in range(2)]
    saved = (total.requires_grad_(), *tensors[2:], mean, rstd, rng_state, dropout_p)
    torch.library.opcheck(add_layer_norm_backward.op, (*grads, *saved, True, True, True))


@bigkern.use_backend("cpu")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_compiles_with_dynamic_shapes(dropout_p):
    def step(input, residual, weight, bias):
        output, total = bigkern.add_layer_norm_with_sum(
            input * 2, residual, input.shape[-1:], weight, bias, dropout_p=dropout_p
        )
        return output.sin() + total

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (2, 5, 6)):
        shapes = (shape, shape, shape[-1:], shape[-1:])
        tensors = [torch.randn(s, requires_grad=True) for s in shapes]
        results = []
        for function in (compiled, step):
            torch.manual_seed(1)
            output = function(*tensors)
            results.append((output, *torch.autograd.grad(output.sum(), tensors)))
        for ours, right in zip(*results, strict=True):
            torch.testing.assert_close(ours, right)


def test_dtypes_promote_as_in_torchs_addition_and_autocast_leaves_them(place):
    input, residual, weight, bias = draw(place, 20, 16)
    with place.use():
        output = bigkern.add_layer_norm(input.bfloat16(), residual, (16,), weight, bias)
        with torch.autocast(place.device, torch.bfloat16):
            low = bigkern.add_layer_norm(input.bfloat16(), residual.bfloat16(), (16,), weight, bias)
    assert output.dtype == torch.float32
    torch.testing.assert_close(
        output, F.layer_norm(residual + input.bfloat16(), (16,), weight, bias), rtol=1e-5, atol=1e-5
    )
    with torch.autocast(place.device, torch.bfloat16):
        right = F.layer_norm(residual.bfloat16() + input.bfloat16(), (16,), weight, bias)
    torch.testing.assert_close(low, right, rtol=2e-2, atol=2e-2)


def test_auto_leaves_small_calls_to_pytorch_unless_they_drop():
    tensors = torch.randn(4, 8), torch.randn(4, 8), (8,)
    (decision,) = bigkern.explain(bigkern.add_layer_norm, *tensors)
    assert decision.chosen == "torch"
    (decision,) = bigkern.explain(bigkern.add_layer_norm, *tensors, dropout_p=0.1)
    assert decision.chosen == "cpu"
    torch.testing.assert_close(bigkern.add_layer_norm(*tensors), F.layer_norm(tensors[0] + tensors[1], (8,)))


def test_the_oracles_gradient_is_that_of_its_results():
    rng, state = np.random.default_rng(0), np.array([5, 6])
    arrays = [rng.normal(size=size) for size in ((3, 4), (3, 4), 4, 4)]
    grads = [rng.normal(size=(3, 4)) for _ in range(2)]
    forward = lambda *moved: reference.add_layer_norm_forward(*moved, state, 1e-5, 0.4, True)  # noqa: E731
    _, total, mean, rstd = forward(*arrays)
    found = reference.add_layer_norm_backward(*grads, total, *arrays[2:], mean, rstd, state, 0.4, True, True, True)
    for which, array in enumerate(arrays):
        numeric = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(arrays)
                moved[which] = array.copy()
                moved[which][i] += step
                ends.append(sum((r * g).sum() for r, g in zip(forward(*moved)[:2], grads, strict=True)))
            numeric[i] = (ends[0] - ends[1]) / 2e-6
        assert max_error(found[which], numeric) < 1e-7


X = torch.ones(3, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X, X[:2], (5,)), ValueError, "add_layer_norm: residual has shape (2, 5), input has (3, 5)"),
        (lambda f: f(X, X.to("meta"), (5,)), ValueError, "add_layer_norm: residual is on meta, input on cpu"),
        (lambda f: f(X, X.long(), (5,)), RuntimeError, "add_layer_norm: residual must be floating, got torch.int64"),
        (lambda f: f(X.long(), X, (5,)), RuntimeError, "add_layer_norm: input must be floating, got torch.int64"),
        (lambda f: f(X, X, (5,), dropout_p=1.5), ValueError, "add_layer_norm: dropout_p must be between 0 and 1, got 1.5"),
        (lambda f: f(X, X, (4,)), RuntimeError, "Given normalized_shape=[4], expected input with shape [*, 4], but got input of size[3, 5]"),
        (lambda f: f(X, X, 5), TypeError, "add_layer_norm(): argument 'normalized_shape' must be tuple of ints, not int"),
        (lambda f: f(X, X, (5,), X), RuntimeError, "Expected weight to be of same shape as normalized_shape, but got weight of shape [3, 5] and normalized_shape = [5]"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    for function in (bigkern.add_layer_norm, bigkern.add_layer_norm_with_sum):
        with pytest.raises(error) as caught:
            call(function)
        assert str(caught.value) == message
