import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.embedding_bag import embedding_bag_backward, embedding_bag_forward
from bigkern.reference import embedding_bag as reference
from tests.support import assert_within_policy, max_error, to_oracle

OFFSETS = [0, 3, 3, 4, 11]  # an empty bag, one of one, and the last to the end


def draw(place, count, rows, columns, dtype=torch.float32, weighted=False):
    """(input, weight, per_sample_weights or None)"""
    input = torch.randint(0, rows, (count,), device=place.device)
    samples = torch.randn(count, device=place.device).to(dtype) if weighted else None
    return input, torch.randn(rows, columns, device=place.device).to(dtype), samples


def with_gradients(function, input, weight, samples, grad_output, **options):
    leaves = [t.detach().requires_grad_() for t in (weight, samples) if t is not None]
    output = function(input, leaves[0], per_sample_weights=leaves[1] if len(leaves) > 1 else None, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def check(place, input, weight, samples, offsets, mode, grad_output=None, **options):
    """Output and gradients within the numerical policy."""
    ends = bool(options.get("include_last_offset"))
    if input.ndim == 1:
        offsets = torch.as_tensor(offsets, device=place.device)
        starts, bags = to_oracle(offsets), len(offsets) - ends
    else:
        starts, bags = np.arange(input.shape[0]) * input.shape[1], input.shape[0]
    if grad_output is None:
        grad_output = torch.randn(bags, weight.shape[1], device=place.device).to(weight.dtype)
    options = {"offsets": offsets, "mode": mode, **options}
    with place.use():
        found = with_gradients(bigkern.embedding_bag, input, weight, samples, grad_output, **options)
    theirs = with_gradients(F.embedding_bag, input, weight, samples, grad_output, **options)
    padding_idx = options.get("padding_idx")
    padding_idx = -1 if padding_idx is None else padding_idx % len(weight)
    flags = (mode, padding_idx, bool(options.get("scale_grad_by_freq")), ends)

    def oracle(absolute):
        arrays = [to_oracle(t) for t in (weight, grad_output)]
        table, grad = (np.abs(a) for a in arrays) if absolute and mode != "max" else arrays
        indices, factors = to_oracle(input).reshape(-1), to_oracle(samples)
        if factors is not None:
            factors = (np.abs(factors) if absolute else factors).reshape(-1)
        output, sizes, winners = reference.embedding_bag_forward(indices, table, starts, factors, *flags)
        grad = np.abs(grad) if absolute else grad
        inputs = (grad, indices, table, starts, factors, sizes, winners)
        return output, *reference.embedding_bag_backward(*inputs, *flags, True, factors is not None)

    names = ("output", "grad_weight", "grad_per_sample_weights")
    for mine, other, right, size, name in zip(found, theirs, oracle(False), oracle(True), names, strict=False):
        assert_within_policy(
            mine, right.reshape(mine.shape), other, what=f"{mode} {name}", magnitude=size.reshape(mine.shape)
        )
    return found


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 37), (20, 65), (3, 270)])
def test_matches_oracle(place, mode, rows, columns):
    for dtype in place.dtypes if columns < 30 or not place.slow else (torch.bfloat16,):
        input, weight, _ = draw(place, 17, rows, columns, dtype)
        check(place, input, weight, None, OFFSETS, mode)
        check(
            place,
            input.int(),
            weight,
            None,
            torch.tensor([*OFFSETS, 15], dtype=torch.int32),
            mode,
            include_last_offset=True,
        )
        check(place, input[:15].view(5, 3), weight, None, None, mode, padding_idx=0)
        if mode == "sum":
            input, weight, samples = draw(place, 17, rows, columns, dtype, weighted=True)
            check(place, input, weight, samples, OFFSETS, mode, padding_idx=-1)
            check(place, input[:16].view(2, 8), weight, samples[:16].view(2, 8), None, mode)
        if mode != "max":
            check(place, input, weight, None, OFFSETS, mode, scale_grad_by_freq=True)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8), rows=st.integers(1, 20), columns=st.integers(1, 40),
    mode=st.sampled_from(["sum", "mean", "max"]), ends=st.booleans(), padding=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, lengths, rows, columns, mode, ends, padding, seed):
    torch.manual_seed(seed)
    offsets = np.cumsum([0, *lengths])
    input, weight, samples = draw(place, int(offsets[-1]), rows, columns, weighted=mode == "sum")
    options = {"padding_idx": 0} if padding else {}
    check(place, input, weight, samples, offsets if ends else offsets[:-1], mode, include_last_offset=ends, **options)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_empty_tensors(place, mode):
    for count, columns, offsets in ((0, 3, [0, 0]), (0, 3, []), (4, 0, [0, 2])):
        input, weight, _ = draw(place, count, 5, columns)
        offsets = torch.tensor(offsets, dtype=torch.int64, device=place.device)
        with place.use():
            grad_output = torch.ones(len(offsets), columns, device=place.device)
            output, grad = with_gradients(
                bigkern.embedding_bag, input, weight, None, grad_output, offsets=offsets, mode=mode
            )
        assert output.shape == (len(offsets), columns)
        assert (output == 0).all()
        assert (grad == 0).all()
    with place.use():
        output = bigkern.embedding_bag(torch.zeros(3, 0, dtype=torch.int64, device=place.device), weight.new_ones(2, 5))
    assert torch.equal(output, output.new_zeros(3, 5))


def test_any_layout(place):
    input, weight, samples = draw(place, 24, 11, 12, weighted=True)
    matrix = input.view(4, 6)
    grad_output = torch.randn(6, 4, 12, device=place.device)[:, :, 0].t().contiguous().t()
    tables = (weight.t().contiguous().t(), torch.cat([weight, weight], 1)[:, 3:15], weight[:1].expand(11, 12))
    for mode in ("mean", "max"):
        for table in tables:
            check(place, matrix.t(), table, None, None, mode)
        check(place, matrix.t(), weight[:, :4], None, None, mode, grad_output)
        check(place, matrix, weight, None, None, mode, grad_output[:1, :1].expand(4, 12))
    strided = torch.stack([input, input, input], 1)
    check(place, strided[:, 1], weight, torch.stack([samples, samples], 1)[:, 0], OFFSETS, "sum")


def test_the_first_of_equal_values_gets_the_gradient(place):
    weight = torch.tensor([[1.0, 5], [1, 2], [0, 5]], device=place.device)
    input = torch.tensor([2, 1, 0, 1, 0, 0], device=place.device)
    _, grad = check(
        place, input, weight, None, [0, 3], "max", torch.tensor([[1.0, 10], [100, 1000]], device=place.device)
    )
    assert grad.tolist() == [[0, 1000], [101, 0], [0, 10]]


@pytest.mark.parametrize("bad", [-1, 5])
def test_out_of_range_indices_are_never_followed(place, bad):
    input, weight, _ = draw(place, 12, 5, 4)
    input[3] = bad
    offsets = torch.tensor([0, 6], device=place.device)
    for mode in ("sum", "mean", "max"):
        with place.use():
            if place.backend != "triton":
                with pytest.raises((IndexError, RuntimeError), match=r"i(n|d)"):
                    bigkern.embedding_bag(input, weight, offsets, mode=mode)
                continue
            grad_output = torch.ones(2, 4, device=place.device)
            output, grad = with_gradients(
                bigkern.embedding_bag, input, weight, None, grad_output, offsets=offsets, mode=mode
            )
        assert output[0].isnan().all()
        assert output[1].isfinite().all()
        assert grad.isfinite().all()


@bigkern.use_backend("cpu")
@pytest.mark.parametrize("offsets", [[1, 2], [0, 5, 3], [0, 9], [0, -1]])
def test_offsets_must_ascend_within_the_input(offsets):
    with pytest.raises(ValueError, match="embedding_bag: offsets"):
        bigkern.embedding_bag(torch.zeros(8, dtype=torch.int64), torch.ones(2, 3), torch.tensor(offsets))


@bigkern.use_backend("cpu")
def test_fewer_threads_give_the_same_bits():
    before = torch.get_num_threads()
    offsets = torch.arange(0, 4000, 20)
    for mode in ("sum", "mean", "max"):
        input, weight, samples = draw(_Here, 4000, 300, 70, weighted=mode == "sum")
        grad_output, results = torch.randn(200, 70), []
        for threads in (1, max(before, 5)):
            torch.set_num_threads(threads)
            arguments = (input, weight, samples, grad_output)
            results.append(with_gradients(bigkern.embedding_bag, *arguments, offsets=offsets, mode=mode))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _Here:
    device = "cpu"


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    offsets = torch.tensor([0, 2, 2, 5])
    for mode, options in (("sum", {}), ("mean", {}), ("max", {}), ("sum", {"include_last_offset": True})):
        input, weight, samples = draw(place, 7, 4, 3, torch.float64, weighted=mode == "sum")
        leaves = [t.requires_grad_() for t in (weight, samples) if t is not None]
        call = lambda weight, samples=None: bigkern.embedding_bag(  # noqa: E731
            input, weight, offsets, mode=mode, per_sample_weights=samples, **options  # noqa: B023
        )  # fmt: skip
        with place.use():
            assert torch.autograd.gradcheck(call, leaves)
            assert torch.autograd.gradgradcheck(call, leaves)


def test_registration_is_complete():
    offsets = torch.tensor([0, 2, 2, 5])
    for mode in ("sum", "max"):
        input, weight, samples = draw(_Here, 7, 4, 3, weighted=mode == "sum")
        leaves = [t if t is None else t.requires_grad_() for t in (weight, samples)]
        flags = (mode, 1, False, False)
        torch.library.opcheck(embedding_bag_forward.op, (input, leaves[0], offsets, leaves[1], *flags))
        _, sizes, winners = embedding_bag_forward(input, weight, offsets, samples, *flags)
        grad = torch.randn(4, 3, requires_grad=True)
        needs = (True, samples is not None)
        arguments = (grad, input, leaves[0], offsets, leaves[1], sizes, winners, *flags, *needs)
        torch.library.opcheck(embedding_bag_backward.op, arguments)


@bigkern.use_backend("cpu")
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_compiles_with_dynamic_shapes(mode):
    step = lambda input, weight, offsets, per_sample_weights=None: bigkern.embedding_bag(  # noqa: E731
        input, weight * 2, offsets, mode=mode
    ).sin()  # fmt: skip
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, bags, columns in ((9, 3, 5), (20, 4, 6), (12, 5, 3)):
        input, weight, _ = draw(_Here, count, 8, columns)
        offsets, grad_output = torch.arange(bags) * 2, torch.randn(bags, columns)
        found, right = (with_gradients(f, input, weight, None, grad_output, offsets=offsets) for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_max_norm_and_sparse_are_as_in_torch():
    input, weight = torch.tensor([[0, 1], [2, 2]]), torch.randn(4, 3) * 5
    ours, theirs = weight.clone(), weight.clone()
    with bigkern.use_backend("cpu"):
        output = bigkern.embedding_bag(input, ours, max_norm=1.0)
        with pytest.raises(RuntimeError, match="backend 'cpu' cannot run sparse=True: sparse gradients are PyTorch's"):
            bigkern.embedding_bag(input, weight, sparse=True)
    assert max_error(output, F.embedding_bag(input, theirs, max_norm=1.0)) < 1e-6
    assert torch.equal(ours, theirs)
    (grad,) = torch.autograd.grad(bigkern.embedding_bag(input, weight.requires_grad_(), sparse=True).sum(), weight)
    assert grad.is_sparse
    assert torch.equal(grad.to_dense()[:, 0], torch.tensor([0.5, 0.5, 1, 0]))


def test_module_takes_torchs_state_dict():
    offsets = torch.tensor([0, 2, 6])
    for options in ({}, {"mode": "sum", "padding_idx": 2}, {"mode": "max"}, {"include_last_offset": True}):
        ours, theirs = (module.EmbeddingBag(7, 5, **options) for module in (bigkern.nn, torch.nn))
        ours.load_state_dict(theirs.state_dict())
        input = torch.tensor([2, 2, 6, 0, 1, 2])
        with bigkern.use_backend("cpu"):
            output = ours(input, offsets)
            output.square().sum().backward()
        right = theirs(input, offsets)
        right.square().sum().backward()
        torch.testing.assert_close(output, right)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        assert repr(ours) == repr(theirs)
    bag = bigkern.nn.EmbeddingBag.from_pretrained(torch.eye(3), mode="sum")
    assert torch.equal(bag(torch.tensor([[2, 0]])), torch.tensor([[1.0, 0, 1]]))


def test_signature_is_torchs():
    ours, theirs = (inspect.signature(module.embedding_bag) for module in (bigkern.functional, F))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


X, W, O = torch.tensor([0, 1]), torch.ones(3, 5), torch.tensor([0, 1])  # noqa: E741


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X, W, O, mode="min"), ValueError, "mode has to be one of sum, mean or max"),
        (lambda f: f(X.view(1, 2), W, O), ValueError, "embedding_bag: if input is 2D, then offsets has to be None and include_last_offset False, as its rows are bags of one length"),
        (lambda f: f(X, W), ValueError, "embedding_bag: offsets has to be a 1D Tensor, got None"),
        (lambda f: f(X, W, O.float()), RuntimeError, "embedding_bag: offsets must be int32 or int64, got torch.float32"),
        (lambda f: f(X[0], W), ValueError, "embedding_bag: input has to be 1D or 2D Tensor, but got Tensor of dimension 0"),
        (lambda f: f(X, W, O, per_sample_weights=W[0]), NotImplementedError, "embedding_bag: per_sample_weights is only supported for mode='sum', got 'mean'"),
        (lambda f: f(X, W, O, mode="sum", per_sample_weights=W[0]), ValueError, "embedding_bag: per_sample_weights has shape (5,), input (2,)"),
        (lambda f: f(X, W, O, mode="sum", per_sample_weights=W[0, :2].double()), RuntimeError, "embedding_bag: per_sample_weights must be torch.float32 as weight, got torch.float64"),
        (lambda f: f(X, W, O, mode="max", scale_grad_by_freq=True), RuntimeError, "embedding_bag: scale_grad_by_freq is not supported with mode 'max'"),
        (lambda f: f(X, W, O[:0], include_last_offset=True), ValueError, "embedding_bag: offsets must hold the end of the last bag, got none"),
        (lambda f: f(X.float(), W, O), RuntimeError, "embedding_bag: input must be int32 or int64, got torch.float32"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.embedding_bag)
    assert str(caught.value) == message
