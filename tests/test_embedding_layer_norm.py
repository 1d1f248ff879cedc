import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.embedding_layer_norm import embedding_layer_norm_backward, embedding_layer_norm_forward
from bigkern.reference import embedding_layer_norm as reference
from bigkern.reference.philox import dropout_keep_rows
from tests.support import assert_within_policy, to_oracle

NAMES = ("output", "grad_word_weight", "grad_position_weight", "grad_token_type_weight", "grad_weight", "grad_bias")
RNG_STATE = (77 + (5 << 32), 12)


def draw(place, rows, words, columns, dtype=torch.float32, parameters=True):
    """([three index vectors], [three tables, weight, bias])"""
    sizes = (words, 6, 2)
    ids = [torch.randint(0, size, (rows,), device=place.device) for size in sizes]
    tensors = [torch.randn(size, columns, device=place.device).to(dtype) for size in sizes]
    tensors += [torch.randn(columns, device=place.device).to(dtype) if parameters else None for _ in range(2)]
    return ids, tensors


def interleave(ids, tensors):
    return *(t for pair in zip(ids, tensors[:3], strict=True) for t in pair), *tensors[3:]


def kernel(ids, tensors, rng_state, dropout_p, padding_idx, eps=1e-5):
    return embedding_layer_norm_forward(*interleave(ids, tensors), rng_state, padding_idx, eps, dropout_p)[0]


def composed(ids, tensors, rng_state, dropout_p, padding_idx, eps=1e-5):
    """What a PyTorch user would write for this mask of dropout."""
    padding_idx = None if padding_idx < 0 else padding_idx
    total = F.embedding(ids[0], tensors[0], padding_idx) + F.embedding(ids[1], tensors[1])
    total = total + F.embedding(ids[2], tensors[2])
    output = F.layer_norm(total, total.shape[1:], *tensors[3:], eps)
    if rng_state is None:
        return output
    keep = torch.from_numpy(dropout_keep_rows(to_oracle(rng_state), dropout_p, *output.shape)).to(output.device)
    return output * keep / (1 - dropout_p)


def with_gradients(function, ids, tensors, grad_output, *options):
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(ids, tensors, *options)
    return [output.detach(), *torch.autograd.grad(output, [t for t in tensors if t is not None], grad_output)]


def check(place, ids, tensors, dropped=False, padding_idx=-1, grad_output=None):
    """Output and gradients within the numerical policy."""
    rng_state = torch.tensor(RNG_STATE, device=place.device) if dropped else None
    options = (rng_state, 0.3 if dropped else 0.0, padding_idx)
    if grad_output is None:
        shape = (len(ids[0]), tensors[0].shape[1])
        grad_output = torch.randn(shape, device=place.device).to(tensors[0].dtype)
    with place.use():
        found = with_gradients(kernel, ids, tensors, grad_output, *options)
    theirs = with_gradients(composed, ids, tensors, grad_output, *options)
    arrays = interleave([to_oracle(i) for i in ids], [to_oracle(t) for t in tensors])
    state, grad = to_oracle(rng_state), to_oracle(grad_output)
    output, mean, rstd = reference.embedding_layer_norm_forward(*arrays, state, padding_idx, 1e-5, options[1])
    rest = (mean, rstd, state, padding_idx, options[1], True, tensors[3] is not None, tensors[4] is not None)
    grads = reference.embedding_layer_norm_backward(grad, *arrays, *rest)
    # What cancels in a short row, and in the sums over rows.
    weight = 1 if arrays[6] is None else arrays[6]
    terms = np.abs(grad * weight) * rstd[:, None] / (1 - options[1])
    sizes = [None]
    for index, table in zip(ids, tensors, strict=False):
        sizes.append(np.zeros(table.shape))
        np.add.at(sizes[-1], to_oracle(index), terms)
    sizes += [np.abs(grad).sum(0) * 4] * 2
    present = [name for name, t in zip(NAMES, (0, *tensors), strict=True) if t is not None]
    for mine, other, name in zip(found, theirs, present, strict=True):
        place_of = NAMES.index(name)
        assert_within_policy(mine, (output, *grads)[place_of], other, what=name, magnitude=sizes[place_of])
    return found


@pytest.mark.parametrize(("rows", "words", "columns"), [(1, 1, 1), (9, 5, 7), (14, 50, 66), (40, 7, 130), (3, 4, 1000)])
def test_matches_oracle(place, rows, words, columns):
    if place.slow:
        rows = min(rows, 14)
    for dtype in place.dtypes if not place.slow or columns < 100 else (torch.bfloat16,):
        check(place, *draw(place, rows, words, columns, dtype))
        check(place, *draw(place, rows, words, columns, dtype, parameters=False), dropped=True, padding_idx=0)


@given(
    rows=st.integers(0, 30), words=st.integers(1, 20), columns=st.integers(1, 90), dropped=st.booleans(),
    parameters=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, rows, words, columns, dropped, parameters, seed):
    torch.manual_seed(seed)
    if place.slow:
        rows = min(rows, 9)
    check(place, *draw(place, rows, words, columns, parameters=parameters), dropped)


def test_any_layout(place):
    ids, tensors = draw(place, 12, 9, 20)
    grad_output = torch.randn(12, 20, device=place.device)
    tables = [
        tensors[0].t().contiguous().t(),
        torch.cat([tensors[1]] * 2, 1)[:, 3:23],
        tensors[2][:1].expand(2, 20),
        torch.stack([tensors[3]] * 2, 1)[:, 0],
        tensors[4],
    ]
    strided = [ids[0].int(), torch.stack([ids[1], ids[1]], 1)[:, 0], ids[2][:1].expand(12)]
    check(place, strided, tables, dropped=True, grad_output=grad_output.t().contiguous().t())
    check(place, strided, tables, grad_output=grad_output[:1, :1].expand(12, 20))


def test_public_op_is_bert(place):
    tables = [torch.randn(size, 12, device=place.device) for size in (9, 5, 2)]
    weight, bias = (torch.randn(12, device=place.device) for _ in range(2))
    input = torch.randint(0, 9, (3, 5), device=place.device)
    types = torch.randint(0, 2, (3, 5), device=place.device)
    total = tables[0][input] + tables[1] + tables[2][types]
    with place.use():
        output = bigkern.embedding_layer_norm(input, *tables, weight, bias, types)
        plain = bigkern.embedding_layer_norm(input, *tables, position_ids=torch.tensor([4] * 5, device=place.device))
    torch.testing.assert_close(output, F.layer_norm(total, (12,), weight, bias, 1e-12), rtol=1e-4, atol=1e-5)
    total = tables[0][input] + tables[1][4] + tables[2][0]
    torch.testing.assert_close(plain, F.layer_norm(total, (12,), eps=1e-12), rtol=1e-4, atol=1e-5)


def test_manual_seed_reproduces_forward_and_backward(place):
    ids, tensors = draw(place, 6, 9, 50)
    tensors = [t.requires_grad_() for t in tensors]

    def call(seed, **options):
        torch.manual_seed(seed)
        with place.use():
            arguments = (*tensors[:3], *tensors[3:], ids[2], ids[1])
            output = bigkern.embedding_layer_norm(ids[0], *arguments, dropout_p=0.5, **options)
            return output, *torch.autograd.grad(output.square().sum(), tensors)

    first, again, other = call(1), call(1), call(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    right = composed(ids, tensors, None, 0.0, -1, 1e-12)
    torch.testing.assert_close(call(1, training=False)[0], right, rtol=1e-4, atol=1e-5)
    with place.use():
        assert (bigkern.embedding_layer_norm(ids[0][:6], *tensors[:3], dropout_p=1.0) == 0).all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_out_of_range_indices_are_never_followed(place, which):
    ids, tensors = draw(place, 6, 9, 12)
    for bad in (-1, 9):
        ids[which][2] = bad
        with place.use():
            if place.backend != "triton":
                with pytest.raises((IndexError, RuntimeError), match="ind"):
                    kernel(ids, tensors, None, 0.0, -1)
                continue
            output = kernel(ids, tensors, None, 0.0, -1)
        assert output[2].isnan().all()
        assert output[[0, 1, 3, 4, 5]].isfinite().all()


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    ids, tensors = draw(_Here, 700, 90, 130)
    grad_output, results = torch.randn(700, 130), []
    for threads in (1, max(before, 4)):
        torch.set_num_threads(threads)
        results.append(with_gradients(kernel, ids, tensors, grad_output, torch.tensor(RNG_STATE), 0.1, -1))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _Here:
    device = "cpu"


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for state, parameters in ((None, False), (torch.tensor(RNG_STATE, device=place.device), True)):
        ids, tensors = draw(place, 3, 3, 3, torch.float64, parameters)
        ids = [i % 2 for i in ids]
        tables = [
            t.narrow(0, 0, 2).requires_grad_() if t.ndim == 2 else t.requires_grad_() for t in tensors if t is not None
        ]
        call = lambda *moved: kernel(ids, [*moved, None, None][:5], state, 0.4 if parameters else 0.0, -1)  # noqa: B023, E731
        with place.use():
            assert torch.autograd.gradcheck(call, tables)
            assert torch.autograd.gradgradcheck(call, tables)


def test_registration_is_complete():
    ids, tensors = draw(_Here, 7, 5, 6)
    tensors = [t.requires_grad_() for t in tensors]
    arguments = (*interleave(ids, tensors), torch.tensor([3, 4]))
    torch.library.opcheck(embedding_layer_norm_forward.op, (*arguments, 1, 1e-5, 0.5))
    _, mean, rstd = embedding_layer_norm_forward(*arguments, 1, 1e-5, 0.5)
    grad = torch.randn(7, 6, requires_grad=True)
    saved = (grad, *arguments[:-1], mean.detach(), rstd.detach(), arguments[-1], 1, 0.5, True, True, True)
    torch.library.opcheck(embedding_layer_norm_backward.op, saved)


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    def step(input, tables):
        return bigkern.embedding_layer_norm(input, *(t * 2 for t in tables), eps=1e-5).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, columns in (((2, 3), 8), ((3, 5), 6), ((4, 2), 5)):
        input = torch.randint(0, 7, shape)
        tables = [torch.randn(size, columns, requires_grad=True) for size in (7, 9, 2)]
        results = []
        for function in (compiled, step):
            output = function(input, tables)
            results.append((output, *torch.autograd.grad(output.sum(), tables)))
        for ours, right in zip(*results, strict=True):
            torch.testing.assert_close(ours, right)


X, W = torch.tensor([[0, 1]]), torch.ones(3, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X.float(), W, W, W), RuntimeError, "embedding_layer_norm: input must be int32 or int64, got torch.float32"),
        (lambda f: f(X, W, W[:, :4], W), RuntimeError, "embedding_layer_norm: position_weight must be [rows, 5], got [3, 4]"),
        (lambda f: f(X, W, W, W.double()), RuntimeError, "embedding_layer_norm: token_type_weight must be torch.float32 as word_weight, got torch.float64"),
        (lambda f: f(X, W, W, W, dropout_p=2), ValueError, "embedding_layer_norm: dropout_p must be between 0 and 1, got 2"),
        (lambda f: f(X, W, W, W, position_ids=X[:, :1].float()), RuntimeError, "embedding_layer_norm: position_ids must be int32 or int64, got torch.float32"),
        (lambda f: f(X, W, W, W, token_type_ids=torch.zeros(3, dtype=torch.int64)), ValueError, "embedding_layer_norm: token_type_ids of shape (3,) does not broadcast to input's (1, 2)"),
        (lambda f: f(X[0, 0], W, W, W), RuntimeError, "embedding_layer_norm: input must have a last dimension, the length, got a scalar"),
        (lambda f: f(X, W, W, W, padding_idx=3), AssertionError, "Padding_idx must be within num_embeddings"),
        (lambda f: f(X, W, W, W, W[0, :4]), RuntimeError, "Expected weight to be of same shape as normalized_shape, but got weight of shape [4] and normalized_shape = [5]"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.embedding_layer_norm)
    assert str(caught.value) == message
