import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.embedding import embedding_backward, embedding_forward
from bigkern.reference import embedding as reference
from tests.support import assert_within_policy, to_oracle

# (indices, rows, columns): one of each, odd, beyond one block of columns, one row many times, many rows once.
SHAPES = [
    ((1,), 1, 1),
    ((9,), 7, 37),
    ((), 5, 3),
    ((2, 3, 4), 3, 65),
    ((40,), 2, 33),
    ((20,), 400, 130),
    ((5,), 9, 517),
]


def draw(place, shape, rows, columns, dtype=torch.float32, index=torch.int64):
    input = torch.randint(0, rows, shape, device=place.device, dtype=index)
    return input, torch.randn(rows, columns, device=place.device).to(dtype)


def with_gradient(function, input, weight, grad_output, **options):
    weight = weight.detach().requires_grad_()
    output = function(input, weight, **options)
    (grad_weight,) = torch.autograd.grad(output, weight, grad_output)
    return output.detach(), grad_weight


def check(place, input, weight, grad_output=None, padding_idx=None, scale_grad_by_freq=False):
    """Output and gradient within the numerical policy, and the inputs as they were."""
    if grad_output is None:
        grad_output = torch.randn(*input.shape, weight.shape[1], device=place.device).to(weight.dtype)
    before = input.clone(), weight.clone()
    options = {"padding_idx": padding_idx, "scale_grad_by_freq": scale_grad_by_freq}
    with place.use():
        output, grad_weight = with_gradient(bigkern.embedding, input, weight, grad_output, **options)
    assert torch.equal(input, before[0])
    assert torch.equal(weight, before[1])
    assert torch.equal(output, weight[input.long()])  # rows are moved, not computed
    padding_idx = -1 if padding_idx is None else padding_idx % len(weight)
    indices, grad = to_oracle(input).reshape(-1), to_oracle(grad_output).reshape(-1, weight.shape[1])
    expected, magnitude = (
        reference.embedding_backward(g, indices, len(weight), padding_idx, scale_grad_by_freq)[0]
        for g in (grad, np.abs(grad))
    )
    _, theirs = with_gradient(F.embedding, input, weight, grad_output, **options)
    assert_within_policy(grad_weight, expected, theirs, what="grad_weight", magnitude=magnitude)
    return grad_weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(place, shape):
    large = place.slow and shape[2] > 100
    for dtype in (torch.bfloat16,) if large else place.dtypes:
        input, weight = draw(place, *shape, dtype)
        check(place, input, weight)
        check(place, input.int(), weight, padding_idx=-1)
        check(place, input, weight, padding_idx=0, scale_grad_by_freq=True)


@given(
    count=st.integers(0, 60), rows=st.integers(1, 40), columns=st.integers(1, 70), hot=st.booleans(),
    padding_idx=st.booleans(), frequency=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, count, rows, columns, hot, padding_idx, frequency, seed):
    torch.manual_seed(seed)
    input, weight = draw(place, (count,), rows, columns)
    if hot:
        input[: count * 3 // 4] = rows // 2
    check(place, input, weight, padding_idx=rows // 2 if padding_idx else None, scale_grad_by_freq=frequency)


@pytest.mark.parametrize("sizes", [(0, 5, 3), (4, 5, 0), (0, 0, 3), (0, 0, 0)])
def test_empty_tensors(place, sizes):
    count, rows, columns = sizes
    input, weight = torch.zeros(count, dtype=torch.int64, device=place.device), torch.ones(rows, columns)
    weight = weight.to(place.device)
    grad_output = torch.ones(count, columns, device=place.device)
    with place.use():
        output, grad_weight = with_gradient(bigkern.embedding, input, weight, grad_output)
    assert output.shape == (count, columns)
    assert grad_weight.shape == weight.shape
    assert (grad_weight[1:] == 0).all()


def test_any_layout(place):
    input, weight = draw(place, (6, 5), 11, 12)
    wide = torch.stack([weight, weight], -1)
    grad_output = torch.randn(6, 5, 12, device=place.device)
    tables = (
        weight.t().contiguous().t(),
        wide[..., 1],
        torch.cat([weight, weight], 1)[:, 3:15],
        weight[:1].expand(11, 12),
    )
    for table in tables:  # fmt: skip
        check(place, input, table)
    for indices in (input.t(), input[:, ::2], input[:1].expand(6, 5), input.flip(0)):
        check(place, indices, weight)
    for grad in (grad_output.transpose(0, 2).contiguous().transpose(0, 2), grad_output[:1, :1, :1].expand(6, 5, 12)):
        check(place, input, weight, grad)


def test_lower_precision_is_summed_in_float32(place):
    input, weight = torch.zeros(1000 if not place.slow else 300, dtype=torch.int64), torch.zeros(2, 5)
    grad_output = torch.ones(len(input), 5, dtype=torch.bfloat16, device=place.device)
    with place.use():
        _, grad = with_gradient(
            bigkern.embedding, input.to(place.device), weight.bfloat16().to(place.device), grad_output
        )
    # One after the other in bfloat16, ones add up to 256.
    assert (grad[0] == torch.tensor(float(len(input))).bfloat16()).all()


def test_non_finite_gradients_stay_in_their_row(place):
    input, weight = draw(place, (40,), 5, 9)
    grad_output = torch.randn(40, 9, device=place.device)
    grad_output[input == 2] = float("nan")
    grad_output[input == 3] = float("inf")
    with place.use():
        _, grad = with_gradient(bigkern.embedding, input, weight, grad_output, padding_idx=2)
    assert grad[[0, 1, 4]].isfinite().all()
    assert (grad[2] == 0).all()
    assert (grad[3] == float("inf")).all()


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_out_of_range_indices_are_never_followed(place, bad):
    input, weight = draw(place, (9,), 5, 4, index=torch.int32)
    input[3] = bad
    with place.use():
        if place.backend == "triton":
            output, grad = with_gradient(bigkern.embedding, input, weight, torch.ones(9, 4, device=place.device))
            assert output[3].isnan().all()
            assert torch.equal(grad.sum(), torch.tensor(32.0))
            return
        for index in (input, input.long()):
            with pytest.raises(IndexError, match="out of range"):
                bigkern.embedding(index, weight)
            if place.backend != "torch":
                with pytest.raises(IndexError, match=f"embedding: index {bad} is out of range for a table of 5 rows"):
                    embedding_backward(torch.ones(9, 4), index, 5, -1, False)


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    for count, rows, columns, hot in ((3000, 400, 70, 0), (3000, 400, 130, 2500), (5000, 2, 300, 0)):
        input, weight = torch.randint(0, rows, (count,)), torch.randn(rows, columns)
        input[:hot] = 1
        grad_output, results = torch.randn(count, columns), []
        for threads in (1, max(before, 5)):
            torch.set_num_threads(threads)
            results.append(with_gradient(bigkern.embedding, input, weight, grad_output))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        theirs, oracle = (
            torch.zeros(rows, columns, dtype=dtype).index_add(0, input, grad_output.to(dtype))
            for dtype in (torch.float32, torch.float64)
        )
        assert_within_policy(results[0][1], to_oracle(oracle), theirs)


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    input, weight = draw(place, (7,), 4, 3, torch.float64)
    for options in ({}, {"padding_idx": 1}, {"scale_grad_by_freq": True}):
        call = lambda weight: bigkern.embedding(input, weight * weight, **options)  # noqa: B023, E731
        with place.use():
            if not options:  # padding and frequencies are no derivatives
                assert torch.autograd.gradcheck(call, weight.requires_grad_())
            grad = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
            backward = lambda grad: embedding_backward(  # noqa: E731
                grad, input, 4, options.get("padding_idx", -1), "scale_grad_by_freq" in options  # noqa: B023
            )  # fmt: skip
            assert torch.autograd.gradcheck(backward, grad)
            assert torch.autograd.gradgradcheck(backward, grad)


def test_registration_is_complete():
    input, weight = torch.randint(0, 5, (9,)), torch.randn(5, 4, requires_grad=True)
    torch.library.opcheck(embedding_forward.op, (input, weight, 1, False))
    grad = torch.randn(9, 4, requires_grad=True)
    for frequency in (False, True):
        torch.library.opcheck(embedding_backward.op, (grad, input, 5, 1, frequency))


@bigkern.use_backend("cpu")  # on auto, calls this small are PyTorch's own in eager mode
def test_compiles_with_dynamic_shapes():
    step = lambda input, weight: bigkern.embedding(input, weight * 2, 1).sin()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, rows, columns in (((9,), 7, 5), ((2, 3), 8, 6), ((4, 5), 6, 3)):
        input, weight = torch.randint(0, rows, shape), torch.randn(rows, columns)
        grad_output = torch.randn(*shape, columns)
        found, right = (with_gradient(f, input, weight, grad_output) for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_max_norm_shrinks_the_rows_looked_up_as_torch_does(place):
    input, weight = draw(place, (6,), 9, 5)
    ours, theirs = weight * 3, weight * 3
    with place.use():
        output = bigkern.embedding(input, ours, max_norm=1.0, norm_type=1.0)
    assert torch.equal(output, F.embedding(input, theirs, max_norm=1.0, norm_type=1.0))
    assert torch.equal(ours, theirs)


def test_sparse_gradients_are_pytorchs():
    input, weight = torch.tensor([1, 1, 3]), torch.randn(5, 4, requires_grad=True)
    (decision,) = bigkern.explain(bigkern.embedding, input, weight, sparse=True)
    assert (decision.chosen, decision.reasons["cpu"]) == ("torch", "sparse gradients are PyTorch's")
    (grad,) = torch.autograd.grad(bigkern.embedding(input, weight, sparse=True).sum(), weight)
    assert grad.is_sparse
    assert torch.equal(grad.to_dense()[:, 0], torch.tensor([0.0, 2, 0, 1, 0]))
    message = "embedding: backend 'cpu' cannot run sparse=True: sparse gradients are PyTorch's"
    with bigkern.use_backend("cpu"), pytest.raises(RuntimeError, match=message):
        bigkern.embedding(input, weight, sparse=True)


def test_module_takes_torchs_state_dict():
    for options in ({}, {"padding_idx": 2}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}):
        ours, theirs = (module.Embedding(7, 5, **options) for module in (bigkern.nn, torch.nn))
        ours.load_state_dict(theirs.state_dict())
        input = torch.tensor([[2, 2, 6], [0, 1, 2]])
        with bigkern.use_backend("cpu"):
            output = ours(input)
            output.square().sum().backward()
        right = theirs(input)
        right.square().sum().backward()
        torch.testing.assert_close(output, right)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        assert repr(ours) == repr(theirs)
    frozen = bigkern.nn.Embedding.from_pretrained(torch.eye(3), padding_idx=1)
    assert type(frozen) is bigkern.nn.Embedding
    assert not frozen.weight.requires_grad
    assert torch.equal(frozen(torch.tensor([2])), torch.eye(3)[2:])


def test_signature_is_torchs():
    ours, theirs = (inspect.signature(module.embedding) for module in (bigkern.functional, F))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


X, W = torch.tensor([0, 1]), torch.ones(3, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.embedding(X.float(), W), RuntimeError, "embedding: input must be int32 or int64, got torch.float32"),
        (lambda: bigkern.embedding(X, W[0]), RuntimeError, "embedding: 'weight' must be 2-D, got 1 dimensions"),
        (lambda: bigkern.embedding(X, W.long()), RuntimeError, "embedding: weight must be floating, got torch.int64"),
        (lambda: bigkern.embedding(X, W.to("meta")), RuntimeError, "embedding: input is on cpu, weight on meta"),
        (lambda: bigkern.embedding(X, W, 3), AssertionError, "Padding_idx must be within num_embeddings"),
        (lambda: bigkern.embedding(X, W, -4), AssertionError, "Padding_idx must be within num_embeddings"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
