"""attention against the oracle: outputs, lse and every gradient, on every backend."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.attention import attention_forward
from tests.attention_cases import NAMES, Case, oracle, torch_answer
from tests.support import assert_within_policy

CASES = [
    Case(),
    Case(batch=1, heads=1, len_q=1, len_k=1, head_dim=8),
    Case(batch=1, heads=1, len_q=1, len_k=1, head_dim=1),
    Case(len_q=1, len_k=70, head_dim=20),
    Case(len_q=70, len_k=1, head_dim=8),
    Case(batch=1, len_q=64, len_k=64, head_dim=64),
    Case(batch=1, heads=3, len_q=129, len_k=131, head_dim=20),
    Case(batch=1, heads=1, len_q=63, len_k=257, head_dim=96),
    Case(batch=1, heads=1, len_q=19, len_k=40, head_dim=256),
    Case(head_dim=24, value_dim=40),
    Case(head_dim=40, value_dim=7),
    Case(scale=0.0),
    Case(scale=-1.5),
    Case(scale=1.0, head_dim=64),
    Case(is_causal=True, len_q=70, len_k=70),
    Case(is_causal=True, len_q=130, len_k=37, head_dim=8),
    Case(is_causal=True, len_q=20, len_k=150, head_dim=8),
    Case(heads=6, kv_heads=2),
    Case(heads=5, kv_heads=1, is_causal=True, len_q=37, len_k=37),
    Case(heads=4, kv_heads=2, mask="additive", value_dim=8),
    *(Case(mask=mask) for mask in (
        "bool", "bool_of_keys", "bool_of_queries", "bool_fully_masked_rows", "additive", "additive_float32",
        "additive_of_heads", "additive_of_positions", "additive_of_keys", "additive_with_infinity",
        "additive_fully_masked_rows",
    )),
    Case(batch=1, heads=1, len_q=67, len_k=130, head_dim=8, mask="bool_fully_masked_rows"),
]  # fmt: skip

EMPTY_CASES = [
    Case(len_q=0),
    Case(len_k=0),
    Case(len_q=0, len_k=0),
    Case(len_k=0, mask="additive"),
    Case(batch=0),
    Case(heads=0),
    Case(head_dim=0, value_dim=5),
    Case(head_dim=8, value_dim=0),
]


def run(place, inputs, grad_output, grad_lse, **options):
    with place.use():
        output, lse = bigkern.attention_with_lse(*inputs, **options)
        wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        results, gradients = (output,), (grad_output,)
        if grad_lse is not None:
            results, gradients = (output, lse), (grad_output, grad_lse)
        grads = list(torch.autograd.grad(results, wanted, gradients))
    return output, lse, *grads, *([None] if len(grads) == 3 else [])


def check(actual, expected, from_torch, dtype, what=""):
    expected, magnitudes = expected
    for name, ours, right, theirs in zip(NAMES, actual, expected, from_torch, strict=True):
        assert (ours is None) == (right is None), name
        if ours is not None:
            assert theirs is None or ours.dtype == theirs.dtype, name
            # The gradient of a float32 mask is as exact as the dtype that the rest is computed in.
            accuracy = dtype if name == "grad_attn_mask" else ours.dtype
            assert_within_policy(ours, right, theirs, accuracy, f"{what} {name}", magnitudes.get(name))


@functools.cache
def solved(case, dtype, device, every_grad_lse):
    """(inputs, grad_output, [(grad_lse, the oracle's answer, PyTorch's)]), computed once for all backends."""
    torch.manual_seed(1)
    inputs = case.inputs(dtype, device)
    rows = inputs[0].shape[:3]
    grad_output = torch.randn((*rows, inputs[2].shape[3]), device=device).to(dtype)
    random_grad_lse = torch.randn(rows, device=device, dtype=torch.promote_types(dtype, torch.float32))
    answers = []
    for grad_lse in (None, random_grad_lse) if every_grad_lse else (random_grad_lse,):
        arguments = (inputs, grad_output, grad_lse, case.is_causal, case.scale_or_default())
        answers.append((grad_lse, oracle(*arguments), torch_answer(*arguments)))
    return inputs, grad_output, answers


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(place, case):
    case = case.on(place)
    options = {"is_causal": case.is_causal, "scale": case.scale, "enable_gqa": case.gqa}
    for dtype in place.dtypes:
        inputs, grad_output, answers = solved(case, dtype, place.device, dtype == torch.float32)
        before = [None if tensor is None else tensor.detach().clone() for tensor in inputs]
        for grad_lse, expected, from_torch in answers:
            actual = run(place, inputs, grad_output, grad_lse, **options)
            check(actual, expected, from_torch, dtype, f"{case} {dtype}")
        assert all(x is None or torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_sizes(place, case):
    if place.backend in ("triton", "cuda") and 0 in (case.head_dim, case.value_dim):
        pytest.skip("heads of no width are left to PyTorch there")
    for dtype in place.dtypes:
        inputs = case.inputs(dtype, place.device)
        grad_output = torch.randn((*inputs[0].shape[:3], inputs[2].shape[3]), device=place.device).to(dtype)
        actual = run(place, inputs, grad_output, None)
        scale = case.scale_or_default() if case.head_dim else 1.0
        expected = oracle(inputs, grad_output, None, False, scale)
        check(actual, expected, torch_answer(inputs, grad_output, None, False, scale), dtype, str(case))


def test_a_row_that_sees_no_key_gives_zeros_and_no_gradient(place):
    inputs = Case(len_q=5, len_k=20, mask="additive").inputs(torch.float32, place.device)
    with torch.no_grad():
        inputs[3][:, :, 2] = float("-inf")
    grad_output = torch.ones(2, 2, 5, 16, device=place.device)
    # Whatever arrives as the gradient of that row's constant lse has no effect.
    grad_lse = torch.ones(2, 2, 5, device=place.device)
    grad_lse[:, :, 2] = float("nan")
    output, lse, grad_query, grad_key, grad_value, grad_mask = run(place, inputs, grad_output, grad_lse)
    assert (output[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == float("-inf")).all()
    assert (grad_query[:, :, 2] == 0).all()
    assert (grad_mask[:, :, 2] == 0).all()
    assert output[:, :, [0, 1, 3, 4]].abs().min() > 0
    for grad in (grad_query, grad_key, grad_value, grad_mask):
        assert grad.isfinite().all()


def _strided(tensor, kind):
    """The same values behind other strides."""
    if kind == "batch_len_heads_dim":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "last_dim_stride_2":
        return torch.stack((tensor, torch.full_like(tensor, 99)), -1).flatten(-2)[..., ::2]
    if kind == "dim_before_len":
        return tensor.mT.contiguous().mT
    if kind == "misaligned":
        return torch.nn.functional.pad(tensor, (3, 2), value=99)[..., 3:-2]
    raise KeyError(kind)


@pytest.mark.parametrize("kind", ["batch_len_heads_dim", "last_dim_stride_2", "dim_before_len", "misaligned"])
def test_strides_do_not_matter(place, kind):
    for dtype in place.dtypes[:2] if place.slow else place.dtypes:
        inputs = Case(heads=4, kv_heads=2, len_q=21, len_k=35, head_dim=24, mask="additive").inputs(dtype, place.device)
        views = [_strided(tensor.detach(), kind).requires_grad_() for tensor in inputs]
        assert views[0].stride() != inputs[0].stride()
        grad_output = torch.randn(2, 4, 21, 24, device=place.device).to(dtype)
        grad_lse = torch.randn(2, 4, 21, device=place.device, dtype=torch.promote_types(dtype, torch.float32))
        scale = 24**-0.5
        expected = oracle(inputs, grad_output, grad_lse, False, scale)
        from_torch = torch_answer(inputs, grad_output, grad_lse, False, scale)
        grad_output_view = _strided(grad_output, kind)
        actual = run(place, views, grad_output_view, grad_lse.mT.contiguous().mT, enable_gqa=True)
        check(actual, expected, from_torch, dtype, kind)


def test_expanded_inputs_and_gradients(place):
    """Stride 0 in heads, in rows and in the incoming gradient (the one that `output.sum()` sends)."""
    query = torch.randn(2, 1, 1, 8, device=place.device).requires_grad_()
    key = torch.randn(1, 1, 19, 8, device=place.device).requires_grad_()
    value = torch.randn(1, 1, 19, 8, device=place.device).requires_grad_()
    expanded = (query.expand(2, 3, 4, 8), key.expand(2, 3, 19, 8), value.expand(2, 3, 19, 8))
    with place.use():
        output = bigkern.attention(*expanded)
        grads = torch.autograd.grad(output.sum(), (query, key, value))
    double = [tensor.double().contiguous() for tensor in expanded]
    right = torch.nn.functional.scaled_dot_product_attention(*double)
    right_grads = torch.autograd.grad(right.sum(), (query, key, value))
    assert_within_policy(output, right, torch.nn.functional.scaled_dot_product_attention(*expanded))
    for grad, right_grad in zip(grads, right_grads, strict=True):
        assert (grad - right_grad).abs().max() <= 2e-6 * (1 + right_grad.abs().max())


LEADING_DIMENSIONS = [
    # leading dimensions of query, key, value; shape of the mask
    ((), (), (), None),
    ((), (), (), (5, 7)),
    ((3,), (3,), (3,), (3, 5, 1)),
    ((3,), (1,), (1,), None),
    ((2, 3), (3,), (3,), (1, 7)),
    ((), (2, 3), (3,), None),
    ((1, 3), (2, 1), (1, 3), (2, 3, 5, 7)),
    ((2, 1), (2, 3), (2, 3), None),
    ((2, 2, 3), (2, 2, 3), (2, 2, 3), (2, 1, 3, 5, 7)),
    ((2, 2, 3), (2, 1, 3), (1, 2, 1), (7,)),
    ((4, 3), (1, 1), (1, 1), ()),
    ((0, 3), (1, 3), (1, 3), None),
]


@pytest.mark.parametrize(("lead_q", "lead_k", "lead_v", "mask_shape"), LEADING_DIMENSIONS)
def test_leading_dimensions_broadcast(place, lead_q, lead_k, lead_v, mask_shape):
    shapes = ((*lead_q, 5, 8), (*lead_k, 7, 8), (*lead_v, 7, 6))
    inputs = [torch.randn(shape, device=place.device).requires_grad_() for shape in shapes]
    if mask_shape is not None:
        inputs.append(torch.randn(mask_shape, device=place.device).requires_grad_())
    with place.use():
        output, lse = bigkern.attention_with_lse(*inputs)
        grads = torch.autograd.grad(output.square().sum() + lse.sum(), inputs)
    double = [tensor.double() for tensor in inputs]
    scores = double[0] @ double[1].mT / 8**0.5 + (double[3] if mask_shape is not None else 0)
    right_output, right_lse = scores.softmax(-1) @ double[2], scores.logsumexp(-1)
    assert output.shape == right_output.shape
    # PyTorch broadcasts lse with value only through the output; ours has the output's leading dimensions.
    right_lse = right_lse.expand(right_output.shape[:-1])
    right_grads = torch.autograd.grad(right_output.square().sum() + right_lse.sum(), inputs)
    for ours, right in zip((output, lse, *grads), (right_output, right_lse, *right_grads), strict=True):
        assert ours.shape == right.shape
        assert (ours - right).abs().max().item() <= 1e-5 if ours.numel() else True


@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), len_q=st.integers(1, 70), len_k=st.integers(1, 70),
    head_dim=st.integers(1, 40), value_dim=st.integers(1, 40),
    mask=st.sampled_from([None, "bool", "bool_fully_masked_rows", "additive", "additive_of_positions"]),
    is_causal=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(place, heads, len_q, len_k, head_dim, value_dim, mask, is_causal, seed):
    torch.manual_seed(seed)
    case = Case(1, *heads, len_q, len_k, head_dim, value_dim, mask, is_causal and mask is None)
    inputs = case.inputs(torch.float32, place.device)
    grad_output = torch.randn(1, heads[0], len_q, value_dim, device=place.device)
    grad_lse = torch.randn(1, heads[0], len_q, device=place.device)
    actual = run(place, inputs, grad_output, grad_lse, is_causal=case.is_causal, enable_gqa=True)
    arguments = (inputs, grad_output, grad_lse, case.is_causal, case.scale_or_default())
    check(actual, oracle(*arguments), torch_answer(*arguments), torch.float32, str(case))


def test_kernel_takes_mask_and_causal_together(place):
    inputs = Case(len_q=40, len_k=40, mask="additive").inputs(torch.float32, place.device)
    query, key, value, mask = inputs
    with place.use():
        output, lse = attention_forward(query, key, value, mask, None, 0.0, True, 0.25, None, -1, -1)
        grads = torch.autograd.grad(output.sum() + lse.sum(), inputs)
        both = mask.masked_fill(~torch.ones(40, 40, dtype=torch.bool, device=place.device).tril(), float("-inf"))
        right_output, right_lse = attention_forward(query, key, value, both, None, 0.0, False, 0.25, None, -1, -1)
        right_grads = torch.autograd.grad(right_output.sum() + right_lse.sum(), inputs)
    for ours, right in zip((output, lse, *grads), (right_output, right_lse, *right_grads), strict=True):
        assert (ours - right).abs().max() <= 1e-5


def test_large_scores_do_not_overflow(place):
    for dtype in place.dtypes:
        query = torch.full((1, 1, 2, 8), 100.0, device=place.device, dtype=dtype)
        key = torch.randn(1, 1, 20, 8, device=place.device).to(dtype)
        key[0, 0, 13] = 10.0
        value = torch.randn(1, 1, 20, 8, device=place.device).to(dtype)
        with place.use():
            output, lse = bigkern.attention_with_lse(query, key, value, scale=1.0)
        # exp(8000) is beyond every dtype; that key takes all the weight.
        assert torch.equal(output, value[:, :, 13:14].expand(1, 1, 2, 8))
        assert (lse == 8000).all()


@pytest.mark.parametrize("len_k", [5, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_are_loud(place, bad, len_k):
    query, key, value, _ = Case(len_q=6, len_k=len_k, head_dim=8).inputs(torch.float32, place.device)
    clean = [tensor.detach().clone() for tensor in (query, key, value)]
    with place.use():
        right = bigkern.attention(*clean)
        bad_query = clean[0].clone()
        bad_query[0, 1, 3, 2] = bad
        output = bigkern.attention(bad_query, *clean[1:])
        bad_value = clean[2].clone()
        bad_value[1, 0, 4, 2] = bad
        value_output = bigkern.attention(*clean[:2], bad_value)
        bad_key = clean[1].clone()
        bad_key[1, 0, 4, 2] = float("nan")
        key_output = bigkern.attention(clean[0], bad_key, clean[2])
    # An infinite score takes the whole row only where all signs agree; NaN in the row is PyTorch's answer too.
    row = torch.zeros(2, 2, 6, dtype=torch.bool, device=place.device)
    row[0, 1, 3] = True
    assert output[row].isnan().all()
    assert torch.equal(output[~row], right[~row])
    assert not value_output[1, 0, :, 2].isfinite().any()
    value_output[1, 0, :, 2] = right[1, 0, :, 2]
    assert torch.equal(value_output, right)
    assert key_output[1, 0].isnan().all()
    key_output[1, 0] = right[1, 0]
    assert torch.equal(key_output, right)


def test_worked_example_of_the_mission_documents(place):
    """Q = [1, 2, 3], K = [4, 5, 6], V = [7, 8, 9] as one row each: a softmax over a single key is 1, so the output is V.

    The documents' formula divides the weighted values by V again, which no attention does.
    """
    query, key, value = (torch.tensor([row], device=place.device) for row in ([1.0, 2, 3], [4.0, 5, 6], [7.0, 8, 9]))
    with place.use():
        output, lse = bigkern.attention_with_lse(query, key, value)
    assert output.tolist() == [[7.0, 8.0, 9.0]]
    assert lse.item() == pytest.approx(32 / 3**0.5, rel=1e-6)


def test_queries_with_few_keys_stay_within_the_policy_on_every_draw(place):
    """There one key has most of the weight, and the two terms of its score's gradient cancel to nearly nothing."""
    if place.backend != "cpu":
        pytest.skip("about how the C++ kernels add up")
    case = Case(batch=200, heads=2, kv_heads=1, head_dim=24, value_dim=40, is_causal=True)
    inputs = case.inputs(torch.float32, place.device)
    grad_output = torch.randn(*inputs[0].shape[:3], 40, device=place.device)
    actual = run(place, inputs, grad_output, None, is_causal=True, enable_gqa=True)
    expected, _ = oracle(inputs, grad_output, None, True, case.scale_or_default())
    from_torch = torch_answer(inputs, grad_output, None, True, case.scale_or_default())
    for name, *results in list(zip(NAMES, actual, expected, from_torch, strict=True))[:5]:
        for draw, (ours, right, theirs) in enumerate(zip(*results, strict=True)):
            assert_within_policy(ours, right, theirs, what=f"draw {draw} {name}")


def test_a_query_that_sees_one_key_alone_has_no_gradient(place):
    """Its softmax is constant; with more keys than one tile holds, delta comes from output."""
    if place.backend != "cpu":
        pytest.skip("about how the C++ kernels add up")
    for dtype in (torch.float32, torch.float64):
        inputs = Case(len_q=50, len_k=300, head_dim=24, value_dim=40).inputs(dtype, place.device)[:3]
        mask = torch.nn.functional.one_hot(torch.randint(300, (50,)), 300).bool().to(place.device)
        grad_output = torch.randn(2, 2, 50, 40, dtype=dtype, device=place.device)
        _, _, grad_query, grad_key, *_ = run(place, (*inputs, mask), grad_output, None)
        assert not grad_query.any()
        assert not grad_key.any()
