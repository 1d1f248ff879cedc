"""attention's sliding windows and ALiBi: against the oracle, and how much of the score matrix they compute."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.attention import attention_backward
from tests.attention_cases import Case, oracle, torch_answer
from tests.test_attention import check, run

CASES = [
    Case(len_q=150, len_k=150, head_dim=8, window=(20, 0)),
    Case(batch=1, len_q=150, len_k=150, head_dim=8, window=(70, 9)),
    Case(batch=1, heads=1, len_q=210, len_k=300, head_dim=8, window=(-1, 40)),
    Case(batch=1, heads=1, len_q=300, len_k=210, head_dim=8, window=(40, -1)),
    Case(len_q=40, len_k=33, window=(0, 0)),
    Case(len_q=90, len_k=20, head_dim=8, window=(5, 3)),
    Case(len_q=33, len_k=33, window=(1000, 1000)),
    Case(heads=4, kv_heads=2, len_q=140, len_k=140, head_dim=8, is_causal=True, window=(30, 7)),
    Case(heads=4, kv_heads=2, len_q=70, len_k=130, head_dim=8, has_alibi=True),
    Case(len_q=70, len_k=70, head_dim=8, is_causal=True, has_alibi=True),
    Case(batch=1, len_q=100, len_k=120, head_dim=24, value_dim=7, window=(33, 2), has_alibi=True),
    Case(len_q=60, len_k=70, mask="additive", window=(16, 16)),
    Case(len_q=60, len_k=70, mask="additive", window=(-1, 0), has_alibi=True),
    Case(len_q=60, len_k=70, mask="bool_fully_masked_rows", window=(11, 5), has_alibi=True),
    Case(len_q=70, len_k=70, mask="additive_of_heads", window=(0, 50)),
]  # fmt: skip


def check_case(place, case, dtype):
    inputs = case.inputs(dtype, place.device)
    rows = inputs[0].shape[:3]
    grad_output = torch.randn((*rows, inputs[2].shape[3]), device=place.device).to(dtype)
    grad_lse = torch.randn(rows, device=place.device, dtype=torch.promote_types(dtype, torch.float32))
    slopes, left, right = where = case.place(dtype, place.device)
    options = {
        "is_causal": case.is_causal,
        "window_size": (left, right),
        "alibi_slopes": slopes,
        "enable_gqa": case.gqa,
    }
    actual = run(place, inputs, grad_output, grad_lse, **options)
    arguments = (inputs, grad_output, grad_lse, case.is_causal, case.scale_or_default())
    check(actual, oracle(*arguments, place=where), torch_answer(*arguments, where), dtype, f"{case} {dtype}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(place, case):
    if place.backend == "cuda":
        pytest.skip("left to Triton")
    case = case.on(place)
    if place.slow:
        case = replace(case, len_q=-(-case.len_q // 2), len_k=-(-case.len_k // 2))
    for dtype in place.dtypes[:2] if place.slow else place.dtypes:
        check_case(place, case, dtype)


@pytest.mark.slow_when_interpreted
@given(
    heads=st.sampled_from([(1, 1), (4, 2)]), len_q=st.integers(1, 150), len_k=st.integers(1, 150),
    window=st.tuples(st.integers(-1, 99), st.integers(-1, 99)), is_causal=st.booleans(), has_alibi=st.booleans(),
    mask=st.sampled_from([None, None, "bool", "additive"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_window(place, heads, len_q, len_k, window, is_causal, has_alibi, mask, seed):
    if place.backend == "cuda":
        pytest.skip("left to Triton")
    torch.manual_seed(seed)
    is_causal = is_causal and mask is None
    shrink = 6 if place.slow else 1
    window = tuple(-(-bound // shrink) if bound > 0 else bound for bound in window)
    case = Case(1, *heads, -(-len_q // shrink), -(-len_k // shrink), 8, 5, mask, is_causal, None, window, has_alibi)
    check_case(place, case, torch.float32)


def test_a_window_right_of_zero_is_is_causal(place):
    inputs = [torch.randn(1, 1, 40, 8, device=place.device) for _ in range(3)]
    with place.use():
        assert torch.equal(bigkern.attention(*inputs, window_size=(-1, 0)), bigkern.attention(*inputs, is_causal=True))
        assert torch.equal(bigkern.attention(*inputs, window_size=[-1, -1]), bigkern.attention(*inputs))


# Queries and keys of one tile, at most.
TILE = 128


def test_work_outside_the_window_is_not_done(place):
    """A product with NaN is NaN even where the probability is 0: it shows which pairs of query and key meet."""
    if place.backend not in ("cpu", "triton"):
        pytest.skip("about kernels of ours")
    length, left, right = (120, 10, 3) if place.slow else (2000, 50, 20)
    tile = 32 if place.slow else TILE
    probes = torch.arange(0, length, length // 16)
    query, key, value, grad_output = (torch.randn(1, 1, length, 16, device=place.device) for _ in range(4))
    where = (None, left, right)
    with place.use():
        output, lse = bigkern.attention_with_lse(query, key, value, window_size=(left, right))
        probed = value.clone()
        probed[0, 0, probes, torch.arange(len(probes)) % 16] = float("nan")
        touched = bigkern.attention(query, key, probed, window_size=(left, right))[0, 0].isnan()  # [length, 16]
        probed = grad_output.clone()
        probed[0, 0, probes, torch.arange(len(probes)) % 16] = float("nan")
        state = (None, 0.0, False, 0.25, *where, False)
        _, _, grad_value, _ = attention_backward(probed, None, query, key, value, None, output, lse, *state)
        probed = key.clone()
        probed[0, 0, length // 2] = float("nan")
        grad_query, _, _, _ = attention_backward(grad_output, None, query, probed, value, None, output, lse, *state)
    reach = left + right + 1
    for hits in (touched, grad_value[0, 0].isnan(), grad_query[0, 0].isnan().any(-1, keepdim=True)):
        per_probe = hits.sum(0)
        assert per_probe.max() <= reach + 2 * tile
        assert hits.any(0).all()


def test_derivatives_and_registration():
    slopes = torch.tensor([0.5, 0.1], dtype=torch.float64)
    inputs = Case(1, 2, 1, 4, 5, 3, 2, "additive").inputs(torch.float64, "cpu")

    def call(query, key, value, mask):
        options = {"window_size": (2, 1), "alibi_slopes": slopes, "enable_gqa": True}
        return bigkern.attention_with_lse(query, key, value, mask, **options)

    for backend in ("reference", "cpu", "torch"):
        with bigkern.use_backend(backend):
            assert torch.autograd.gradcheck(call, inputs)
            assert torch.autograd.gradgradcheck(call, inputs)


def test_compiles_with_dynamic_shapes():
    def step(query, key, value, slopes):
        return bigkern.attention(query, key, value, window_size=(4, 2), alibi_slopes=slopes).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (9, 33):
        inputs = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
        slopes = torch.rand(2, 3)
        for ours, right in zip(
            torch.autograd.grad(compiled(*inputs, slopes).sum(), inputs),
            torch.autograd.grad(step(*inputs, slopes).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, right)


Q = torch.ones(2, 4, 3, 8)

ERRORS = [
    ({"window_size": (-2, 0)}, ValueError, "attention: window_size must be (left, right), each -1 or more, got (-2, 0)"),
    ({"window_size": (1, 2, 3)}, ValueError, "attention: window_size must be (left, right), each -1 or more, got (1, 2, 3)"),
    ({"alibi_slopes": torch.ones(4, dtype=torch.float64)}, TypeError, "attention: alibi_slopes must be torch.float32, got torch.float64"),
    ({"alibi_slopes": torch.ones(3)}, ValueError, "attention: alibi_slopes must be [4] or [2, 4], got (3,)"),
    ({"alibi_slopes": torch.ones(4, device="meta")}, ValueError, "attention: alibi_slopes is on meta, query on cpu"),
    ({"alibi_slopes": torch.ones(4).requires_grad_()}, ValueError, "attention: alibi_slopes has no gradient; slopes that learn are an additive attn_mask"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), ERRORS, ids=[case[2][11:40] for case in ERRORS])
def test_errors_say_what_is_wrong(options, error, message):
    with pytest.raises(error) as caught:
        bigkern.attention(Q, Q, Q, **options)
    assert str(caught.value) == message


def test_cuda_says_what_it_leaves_to_triton():
    for options, reason in (
        ({"window_size": (2, 2)}, "window_size is left to Triton"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes is left to Triton"),
    ):
        with bigkern.use_backend("cuda"):
            (decision,) = bigkern.explain(bigkern.attention, Q, Q, Q, **options)
        assert decision.chosen is None
        assert decision.reasons["cuda"] == reason or "CUDA" in decision.reasons["cuda"]
