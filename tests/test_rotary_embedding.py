import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.rotary_embedding import rotary_embedding_backward, rotary_embedding_forward
from bigkern.reference import rotary_embedding as reference
from bigkern.verify_cases.rotary_embedding import rotate_composed
from tests.support import assert_within_policy, to_oracle


def draw(place, shape, pairs, positions, dtype=torch.float32):
    """(input, cos, sin)"""
    angles = torch.rand(positions, pairs, device=place.device) * 20
    return torch.randn(shape, device=place.device).to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)


def with_gradient(function, input, *rest, grad_output, **options):
    input = input.detach().requires_grad_()
    output = function(input, *rest, **options)
    return output.detach(), *torch.autograd.grad(output, input, grad_output)


def check(place, input, cos, sin, interleaved=False, position_ids=None, offset=0, grad_output=None):
    """Output and gradient within the numerical policy."""
    if grad_output is None:
        grad_output = torch.randn(input.shape, device=place.device).to(input.dtype)
    options = {"interleaved": interleaved, "position_ids": position_ids, "offset": offset}
    with place.use():
        found = with_gradient(bigkern.rotary_embedding, input, cos, sin, grad_output=grad_output, **options)
    wide = [t.to(input.dtype) for t in (cos, sin)]
    theirs = with_gradient(rotate_composed, input, *wide, grad_output=grad_output, **options)
    tables = [to_oracle(t)[None] for t in (cos, sin)]
    ids = None if position_ids is None else np.broadcast_to(to_oracle(position_ids), (len(input), input.shape[2]))
    rest = (*tables, ids, offset, interleaved)
    (output,) = reference.rotary_embedding_forward(to_oracle(input), *rest)
    (grad_input,) = reference.rotary_embedding_backward(to_oracle(grad_output), *rest)
    assert found[0].dtype == input.dtype
    assert_within_policy(found[0], output, theirs[0], what="output")
    assert_within_policy(found[1], grad_input, theirs[1], what="grad_input")


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "pairs"), [((1, 1, 1, 2), 1), ((2, 3, 5, 14), 7), ((1, 2, 3, 66), 20), ((2, 1, 4, 130), 65), ((1, 2, 3, 5), 2)]
)  # fmt: skip
def test_matches_oracle(place, interleaved, shape, pairs):
    batch, _, length, _ = shape
    for dtype in place.dtypes:
        input, cos, sin = draw(place, shape, pairs, length + 4, dtype)
        check(place, input, cos, sin, interleaved)
        check(place, input, cos, sin, interleaved, offset=3)
        ids = torch.randint(0, length + 4, (batch, length), device=place.device)
        check(place, input, cos, sin, interleaved, ids)
        check(place, input, cos.float(), sin.float(), interleaved, ids.int()[:1])


@given(
    batch=st.integers(1, 3), heads=st.integers(1, 4), length=st.integers(0, 9), pairs=st.integers(0, 40),
    rest=st.integers(0, 5), interleaved=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, batch, heads, length, pairs, rest, interleaved, seed):
    torch.manual_seed(seed)
    check(
        place, *draw(place, (batch, heads, length, 2 * pairs + rest), pairs, length + 2), interleaved, offset=seed % 3
    )


def test_any_layout(place):
    shape = (2, 3, 4, 12)
    input, cos, sin = draw(place, shape, 5, 6)
    layouts = [
        torch.randn(2, 4, 3, 12, device=place.device).transpose(1, 2),
        torch.randn(2, 3, 12, 4, device=place.device).transpose(2, 3),
        torch.randn(2, 3, 4, 30, device=place.device)[..., 3:15],
        input[:1, :1].expand(shape),
    ]
    for interleaved in (False, True):
        for layout in layouts:
            check(place, layout, cos, sin, interleaved)
            check(place, input, cos, sin, interleaved, grad_output=layout)
    check(place, input, cos.t().contiguous().t(), torch.cat([sin, sin], 1)[:, 1:6])


def test_fewer_dimensions_and_tables_of_each_batch(place):
    input, cos, sin = draw(place, (2, 3, 4, 12), 6, 4)
    tables = [torch.stack([t, t.flip(0)]) for t in (cos, sin)]
    with place.use():
        output = bigkern.rotary_embedding(input, *tables)
        for b in range(2):
            alone = bigkern.rotary_embedding(input[b], tables[0][b], tables[1][b])
            assert torch.equal(output[b], alone)
            assert torch.equal(alone[1], bigkern.rotary_embedding(input[b, 1], tables[0][b], tables[1][b]))
    torch.testing.assert_close(output[:1], rotate_composed(input[:1], cos, sin), rtol=1e-5, atol=1e-5)


def test_turning_back_gives_the_input_and_lengths_stay(place):
    input, cos, sin = draw(place, (1, 2, 5, 16), 8, 5)
    with place.use():
        output = bigkern.rotary_embedding(input, cos, sin)
        again = bigkern.rotary_embedding(output, cos, -sin)
    torch.testing.assert_close(again, input, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.norm(dim=-1), input.norm(dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 6])
def test_positions_out_of_range_are_never_followed(place, bad):
    input, cos, sin = draw(place, (2, 3, 4, 12), 5, 6)
    ids = torch.tensor([[0, 1, 2, 3], [0, bad, 2, 3]], device=place.device)
    with place.use():
        if place.backend == "triton":
            output = bigkern.rotary_embedding(input, cos, sin, position_ids=ids)
            assert output[1, :, 1, :10].isnan().all()
            assert output.isnan().any(-1).sum() == 3  # one row of each head
            return
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            bigkern.rotary_embedding(input, cos, sin, position_ids=ids)


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    input, cos, sin = (t.requires_grad_() for t in draw(place, (1, 2, 3, 5), 2, 3, torch.float64))
    for interleaved in (False, True):
        call = lambda input: bigkern.rotary_embedding(input * input, cos.detach(), sin.detach(), interleaved)  # noqa: B023, E731
        angles = lambda *tensors: bigkern.rotary_embedding(*tensors, interleaved)  # noqa: B023, E731
        with place.use():
            assert torch.autograd.gradcheck(call, input)
            assert torch.autograd.gradgradcheck(call, input)
            assert torch.autograd.gradcheck(angles, (input, cos, sin))
            assert torch.autograd.gradgradcheck(angles, (input, cos, sin))
            with pytest.raises(RuntimeError, match="the kernels have no gradient of cos and sin"):
                rotary_embedding_forward(input, cos[None], sin[None], None, 0, interleaved).sum().backward()


def test_registration_is_complete():
    input, cos, sin = draw(_Here, (2, 3, 4, 12), 5, 6)
    ids = torch.randint(0, 6, (2, 4))
    for kernel in (rotary_embedding_forward, rotary_embedding_backward):
        torch.library.opcheck(kernel.op, (input.requires_grad_(), cos[None], sin[None], None, 2, True))
        torch.library.opcheck(kernel.op, (input, cos[None], sin[None], ids, 0, False))


class _Here:
    device = "cpu"


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    step = lambda input, cos, sin: bigkern.rotary_embedding(input * 2, cos, sin, offset=1).sin()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, pairs in (((2, 3, 4, 12), 6), ((3, 2, 5, 10), 4), ((2, 4, 7, 16), 7)):
        tensors, grad_output = draw(_Here, shape, pairs, 9), torch.randn(shape)
        found, right = (with_gradient(f, *tensors, grad_output=grad_output) for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


X, C = torch.ones(1, 2, 3, 8), torch.ones(4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X[0, 0, 0], C, C), ValueError, "rotary_embedding: input must be [batch, heads, length, head_dim], got [8]"),
        (lambda f: f(X, C, C[:2]), ValueError, "rotary_embedding: cos and sin must both be [positions, pairs] or [batch, positions, pairs], got [4, 4] and [2, 4]"),
        (lambda f: f(X[..., :7], C, C), ValueError, "rotary_embedding: 4 pairs do not fit into a head_dim of 7"),
        (lambda f: f(X, C.expand(2, 4, 4), C.expand(2, 4, 4)), ValueError, "rotary_embedding: cos is for 2 batches, input has 1"),
        (lambda f: f(X, C, C, offset=2), IndexError, "rotary_embedding: positions 2 to 4 are out of range for cos and sin of 4 positions"),
        (lambda f: f(X, C, C, position_ids=torch.zeros(2, dtype=torch.int64)), ValueError, "rotary_embedding: position_ids must be [3] or [1, 3], got [2]"),
        (lambda f: f(X, C, C, position_ids=torch.zeros(3)), RuntimeError, "rotary_embedding: position_ids must be int32 or int64, got torch.float32"),
        (lambda f: f(X, C, C, position_ids=torch.zeros(3, dtype=torch.int64), offset=1), ValueError, "rotary_embedding: give position_ids or an offset, not both"),
        (lambda f: f(X.long(), C, C), RuntimeError, "rotary_embedding: input must be floating, got torch.int64"),
        (lambda f: f(X, C.to("meta"), C), RuntimeError, "rotary_embedding: cos is on meta, input on cpu"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(bigkern.rotary_embedding)
    assert str(caught.value) == message
