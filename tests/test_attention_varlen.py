"""attention_varlen: packed sequences against the oracle and against attention of each sequence alone."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern.ops.attention_varlen import attention_varlen_backward, attention_varlen_forward
from bigkern.reference import attention_varlen as reference
from tests.support import assert_within_policy, to_oracle


@dataclass(frozen=True)
class Case:
    """Lengths of the sequences, rows that belong to none, sizes and options."""

    lens_q: tuple[int, ...] = (17, 1, 40)
    lens_k: tuple[int, ...] | None = None
    rest: int = 0
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    is_causal: bool = False
    window: tuple[int, int] = (-1, -1)
    has_alibi: bool = False

    def __str__(self):
        changed = [f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name)]
        return ",".join(changed) or "plain"

    def inputs(self, dtype, device):
        """(query, key, value, cu_seqlens_q, cu_seqlens_k), gradients asked for."""
        lens_k = self.lens_q if self.lens_k is None else self.lens_k
        shapes = (
            (sum(self.lens_q) + self.rest, self.heads, self.head_dim),
            (sum(lens_k) + self.rest, self.kv_heads, self.head_dim),
            (sum(lens_k) + self.rest, self.kv_heads, self.value_dim),
        )
        tensors = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]
        starts = [torch.tensor([0, *lens]).cumsum(0).int().to(device) for lens in (self.lens_q, lens_k)]
        return *tensors, *starts

    def options(self, dtype, device):
        acc = torch.promote_types(dtype, torch.float32)
        slopes = (2.0 ** -torch.arange(1, self.heads + 1, dtype=acc)).to(device) if self.has_alibi else None
        return {"is_causal": self.is_causal, "window_size": self.window, "alibi_slopes": slopes, "scale": 0.3}


CASES = [
    Case(),
    Case(lens_q=(70, 3, 90, 0, 64), is_causal=True, heads=1, kv_heads=1, head_dim=8, value_dim=8),
    Case(lens_q=(3, 0, 20), lens_k=(40, 5, 0), rest=3),
    Case(lens_q=(33, 40), lens_k=(50, 7), heads=4, kv_heads=2, value_dim=24, is_causal=True),
    Case(lens_q=(64, 90), window=(20, 5), heads=1, kv_heads=1, rest=1),
    Case(lens_q=(50, 33), window=(15, -1), is_causal=True, has_alibi=True),
    Case(lens_q=(1,), lens_k=(2,), heads=1, kv_heads=1),
]  # fmt: skip


def per_sequence(query, key, value, cu_seqlens_q, cu_seqlens_k, is_causal, window_size, alibi_slopes, scale):
    """What a PyTorch user would write: a loop, with dense masks; (output, lse)."""
    outputs, rows = [], []
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for s in range(len(starts_q) - 1):
        one = [query[starts_q[s] : starts_q[s + 1]], *(t[starts_k[s] : starts_k[s + 1]] for t in (key, value))]
        one = [tensor.transpose(0, 1)[None] for tensor in one]
        distance = torch.arange(one[0].shape[2], device=query.device)[:, None]
        distance = distance - torch.arange(one[1].shape[2], device=query.device)
        bias = torch.zeros(distance.shape, device=query.device, dtype=torch.promote_types(query.dtype, torch.float32))
        if alibi_slopes is not None:
            bias = bias - alibi_slopes[:, None, None] * distance.abs()
        left, right = window_size
        right = 0 if is_causal else right
        hidden = (distance > (left if left >= 0 else distance.numel())) | (
            distance < (-right if right >= 0 else -distance.numel() - 1)
        )
        bias = bias.masked_fill(hidden, float("-inf"))
        output = torch.nn.functional.scaled_dot_product_attention(*one, bias[None] if bias.ndim == 3 else bias,
                                                                  scale=scale, enable_gqa=True)  # fmt: skip
        wide = [tensor.to(bias.dtype) for tensor in one[:2]]
        scores = wide[0] @ wide[1].repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scale + bias
        blind = (scores == float("-inf")).all(-1)
        lse = scores.masked_fill(blind[..., None], 0).logsumexp(-1) if scores.shape[-1] else scores.sum(-1)
        outputs.append(output[0].transpose(0, 1))
        rows.append(lse.masked_fill(blind, float("-inf"))[0])
    rest = len(query) - starts_q[-1]
    outputs.append(outputs[0].new_zeros(rest, *outputs[0].shape[1:]))
    rows.append(rows[0].new_full((query.shape[1], rest), float("-inf")))
    return torch.cat(outputs), torch.cat(rows, 1)


def results_of(function, inputs, grad_output, grad_lse, **options):
    output, lse = function(*inputs, **options)
    return output, lse, *torch.autograd.grad((output, lse), inputs[:3], (grad_output, grad_lse))


def check_case(place, case, dtype):
    inputs, options = case.inputs(dtype, place.device), case.options(dtype, place.device)
    grad_output = torch.randn(*inputs[0].shape[:2], case.value_dim, device=place.device).to(dtype)
    grad_lse = torch.randn(case.heads, len(inputs[0]), device=place.device)
    grad_lse = grad_lse.to(torch.promote_types(dtype, torch.float32))
    longest = [int(starts.diff().max()) for starts in inputs[3:]]
    lengths = {"max_seqlen_q": longest[0], "max_seqlen_k": longest[1]}
    with place.use():
        ours = results_of(bigkern.attention_varlen_with_lse, inputs, grad_output, grad_lse, **lengths, **options)
    slopes = options["alibi_slopes"]
    slopes = None if slopes is None else to_oracle(slopes.expand(len(inputs[3]) - 1, -1))
    arrays = [to_oracle(tensor) for tensor in inputs]
    settings = (*longest, case.is_causal, 0.3, slopes, *case.window)
    output, lse = reference.attention_varlen_forward(*arrays, *settings)
    saved = (*arrays[:3], output, lse, *arrays[3:], *settings)
    grads = reference.attention_varlen_backward(to_oracle(grad_output), to_oracle(grad_lse), *saved)
    from_torch = results_of(per_sequence, inputs, grad_output, grad_lse, **options)
    names = ("output", "lse", "grad_query", "grad_key", "grad_value")
    for name, actual, right, theirs in zip(names, ours, (output, lse, *grads), from_torch, strict=True):
        assert_within_policy(actual, right, theirs, actual.dtype, f"{case} {dtype} {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(place, case):
    for dtype in place.dtypes[:2] if place.slow else place.dtypes:
        check_case(place, case, dtype)


@pytest.mark.slow_when_interpreted
@settings(max_examples=12)
@given(
    lens=st.lists(st.tuples(st.integers(0, 50), st.integers(2, 50)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2)]), rest=st.integers(0, 3), is_causal=st.booleans(), has_alibi=st.booleans(),
    window=st.tuples(st.integers(-1, 30), st.integers(-1, 30)), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_lengths(place, lens, heads, rest, is_causal, has_alibi, window, seed):
    torch.manual_seed(seed)
    if place.slow:
        lens, window = (
            [(q // 2, (k + 2) // 2) for q, k in lens],
            tuple((bound + 1) // 2 - (bound < 0) for bound in window),
        )
    lens_q, lens_k = zip(*lens, strict=True)
    check_case(place, Case(lens_q, lens_k, rest, *heads, 8, 5, is_causal, window, has_alibi), torch.float32)


def test_each_sequence_is_attention_of_it_alone(place):
    """The bits of it: no sequence sees another, whatever is in there."""
    if place.backend not in ("cpu", "triton"):
        pytest.skip("about kernels of ours")
    query, key, value, starts_q, starts_k = (t.detach() for t in Case().inputs(torch.float32, place.device))
    key[17:18] = float("nan")
    with place.use():
        output = bigkern.attention_varlen(query, key, value, starts_q, starts_k, is_causal=True)
        for first, end in ((0, 17), (18, 58)):
            one = [tensor[first:end].transpose(0, 1)[None] for tensor in (query, key, value)]
            assert torch.equal(output[first:end], bigkern.attention(*one, is_causal=True)[0].transpose(0, 1))
    assert output[17].isnan().all()


def test_strides_do_not_matter(place):
    inputs = Case(head_dim=24, value_dim=24).inputs(torch.float32, place.device)
    with place.use():
        right = bigkern.attention_varlen(*inputs)
        packed = torch.cat(
            [tensor.detach() for tensor in inputs[:3]], 1
        )  # [total, 3 * heads, dim], as a projection gives
        views = [view.requires_grad_() for view in packed.split(2, 1)]
        ours = bigkern.attention_varlen(*views, *inputs[3:])
        assert torch.equal(ours, right)
        grads = torch.autograd.grad(ours.sum(), views)
        for grad, right_grad in zip(grads, torch.autograd.grad(right.sum(), inputs[:3]), strict=True):
            torch.testing.assert_close(grad, right_grad, rtol=1e-6, atol=1e-6)


def test_empty_sizes(place):
    for case in (Case(lens_q=()), Case(lens_q=(0, 0)), Case(lens_q=(3,), lens_k=(0,)), Case(lens_q=(), rest=2)):
        inputs = case.inputs(torch.float32, place.device)
        with place.use():
            output = bigkern.attention_varlen(*inputs)
            grads = torch.autograd.grad(output.sum(), inputs[:3])
        for result in (output, *grads):
            assert (result == 0).all()


def test_derivatives():
    inputs = Case(lens_q=(3, 2), lens_k=(2, 4), rest=1, heads=2, kv_heads=1, head_dim=3, value_dim=2).inputs(
        torch.float64, "cpu"
    )

    def call(query, key, value):
        output, lse = bigkern.attention_varlen_with_lse(query, key, value, *inputs[3:], window_size=(2, 1))
        return output, lse[:, :5]

    for backend in ("reference", "cpu", "torch"):
        with bigkern.use_backend(backend):
            assert torch.autograd.gradcheck(call, inputs[:3])
            assert torch.autograd.gradgradcheck(call, inputs[:3])


def test_registration_compile_and_autocast():
    inputs = Case().inputs(torch.float32, "cpu")
    options = (40, 40, True, 0.3, None, -1, -1)
    opcheck(attention_varlen_forward.op, (*inputs, *options))
    output, lse = (tensor.detach() for tensor in attention_varlen_forward(*inputs, *options))
    saved = (*inputs[:3], output, lse, *inputs[3:], *options)
    grad_output = torch.randn_like(output)
    # Second derivatives loop over lengths that a compiler cannot know: eager ones only.
    eager_checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(attention_varlen_backward.op, (grad_output.requires_grad_(), None, *saved), test_utils=eager_checks)
    plain = [tensor.detach() if isinstance(tensor, torch.Tensor) else tensor for tensor in saved]
    opcheck(attention_varlen_backward.op, (grad_output.detach(), None, *plain))

    def step(query, key, value, starts):
        return bigkern.attention_varlen(query, key, value, starts, starts, is_causal=True, window_size=(9, -1)).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for lens in ((5, 9), (3, 0, 20)):
        *tensors, starts, _ = Case(lens_q=lens).inputs(torch.float32, "cpu")
        results = [torch.autograd.grad(function(*tensors, starts).sum(), tensors) for function in (compiled, step)]
        for ours, right in zip(*results, strict=True):
            torch.testing.assert_close(ours, right)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = bigkern.attention_varlen(*inputs)
    assert torch.equal(lowered, bigkern.attention_varlen(*(tensor.bfloat16() for tensor in inputs[:3]), *inputs[3:]))


Q, STARTS = torch.ones(5, 4, 8), torch.tensor([0, 5], dtype=torch.int32)
PLAIN = {"query": Q, "key": Q, "value": Q, "cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS}

ERRORS = [
    ({"query": Q.long()}, TypeError, "attention_varlen: query must be floating, got torch.int64"),
    ({"key": Q.half()}, TypeError, "attention_varlen: query, key and value must have the same dtype, got torch.float32, torch.float16 and torch.float32"),
    ({"value": Q[0]}, ValueError, "attention_varlen: value must be [tokens, heads, dim], got [4, 8]"),
    ({"cu_seqlens_q": STARTS.long()}, ValueError, "attention_varlen: cu_seqlens_q must be torch.int32 [sequences + 1], got torch.int64 [2]"),
    ({"cu_seqlens_q": STARTS[:1]}, ValueError, "attention_varlen: cu_seqlens_q has 1 elements, cu_seqlens_k has 2"),
    ({"cu_seqlens_q": STARTS + 1}, ValueError, "attention_varlen: cu_seqlens_q must rise from 0 to at most 5"),
    ({"cu_seqlens_k": STARTS * 2}, ValueError, "attention_varlen: cu_seqlens_k must rise from 0 to at most 5"),
    ({"key": Q[:, :, :7]}, ValueError, "attention_varlen: query has head_dim 8, key has 7"),
    ({"key": Q[:3]}, ValueError, "attention_varlen: key is [3, 4] and value [5, 4], before the last size"),
    ({"query": torch.ones(5, 3, 8)}, ValueError, "attention_varlen: 3 heads of query are no multiple of 4 heads of key and value"),
    ({"key": Q.to("meta")}, ValueError, "attention_varlen: all tensors must be on cpu, got meta"),
    ({"window_size": (-2, 0)}, ValueError, "attention_varlen: window_size must be (left, right), each -1 or more, got (-2, 0)"),
    ({"alibi_slopes": torch.ones(3)}, ValueError, "attention_varlen: alibi_slopes must be [4] or [1, 4], got (3,)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), ERRORS, ids=[case[2][18:50] for case in ERRORS])
def test_errors_say_what_is_wrong(changes, error, message):
    with pytest.raises(error) as caught:
        bigkern.attention_varlen(**{**PLAIN, **changes})
    assert str(caught.value) == message


def test_forced_backend_refuses_what_it_does_not_declare():
    with bigkern.use_backend("triton"), pytest.raises(RuntimeError, match="float64 is left to PyTorch on a GPU"):
        bigkern.attention_varlen(*Case().inputs(torch.float64, "cpu"))
