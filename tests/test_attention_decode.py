"""attention_decode and cache_append against the oracle: whole and paged caches, in floating point and int8."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
from bigkern.ops.attention_decode import attention_decode_forward, cache_append_step
from bigkern.reference import attention_decode as reference
from tests.support import PLACES, assert_within_policy, to_oracle

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """Sizes and options; block_size None: one whole cache per sequence."""

    seqlens: tuple[int, ...] = (7, 40, 1)
    heads: int = 4
    kv_heads: int = 2
    len_q: int = 1
    max_len: int = 48
    head_dim: int = 16
    value_dim: int = 16
    block_size: int | None = None
    is_int8: bool = False
    is_causal: bool = True
    window: tuple[int, int] = (-1, -1)
    has_alibi: bool = False

    def __str__(self):
        changed = [f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name)]
        return ",".join(changed) or "plain"

    def inputs(self, dtype, device):
        """(query, {name: tensor of attention_decode}); what no sequence owns in the caches is NaN."""
        batch = len(self.seqlens)
        tensors = {"cache_seqlens": torch.tensor(self.seqlens, dtype=torch.int32)}
        lead = (batch, self.kv_heads, self.max_len)
        if self.block_size:
            max_blocks = -(-self.max_len // self.block_size)
            lead = (batch * max_blocks + 2, self.kv_heads, self.block_size)
            tensors["block_table"] = torch.randperm(lead[0])[: batch * max_blocks].view(batch, max_blocks).int()
        query = torch.randn(batch, self.heads, self.len_q, self.head_dim).to(dtype)
        for name, dim in (("key", self.head_dim), ("value", self.value_dim)):
            cache = torch.randn(*lead, dim)
            if self.is_int8:
                cache = torch.randint(-127, 128, (*lead, dim), dtype=torch.int8)
                tensors[f"{name}_scale"] = torch.rand(lead) / 50
            owned = torch.zeros(lead[0], lead[2], dtype=torch.bool)
            for b, seqlen in enumerate(self.seqlens):
                pages, slots = reference.places_of_tokens(0, seqlen, b, to_oracle(tensors.get("block_table")), cache)
                owned[pages, slots] = True
            unowned = ~owned[:, None, :]
            if self.is_int8:
                tensors[f"{name}_scale"].masked_fill_(unowned, NAN)
            else:
                cache = cache.masked_fill(unowned[..., None], NAN)
            tensors[f"{name}_cache"] = cache if self.is_int8 else cache.to(dtype)
        return query.to(device), {name: tensor.to(device) for name, tensor in tensors.items()}

    def options(self, dtype, device):
        acc = torch.promote_types(dtype, torch.float32)
        slopes = (2.0 ** -torch.arange(1, self.heads + 1, dtype=acc)).to(device) if self.has_alibi else None
        return {"is_causal": self.is_causal, "window_size": self.window, "alibi_slopes": slopes, "scale": 0.3}


CASES = [
    Case(),
    Case(seqlens=(0, 3), head_dim=20, value_dim=7),
    Case(seqlens=(1500, 513), heads=2, kv_heads=1, max_len=1537, head_dim=24),
    Case(seqlens=(40, 3, 2), len_q=3),
    Case(seqlens=(40, 17), len_q=4, is_causal=False),
    Case(heads=24, kv_heads=2, len_q=2, seqlens=(33, 2)),
    Case(seqlens=(40, 4, 31), block_size=16),
    Case(seqlens=(40, 0, 33), block_size=7, len_q=2),
    Case(seqlens=(40, 9), is_int8=True),
    Case(seqlens=(41, 9, 20), is_int8=True, block_size=5, len_q=2, value_dim=24),
    Case(seqlens=(48, 9), window=(11, -1), len_q=2),
    Case(seqlens=(48, 9), window=(20, 2), len_q=5, is_causal=False, has_alibi=True),
    Case(seqlens=(48, 9), has_alibi=True, block_size=16),
]


def masked_attention(query, tensors, is_causal, window_size, alibi_slopes, scale):
    """What a PyTorch user would run: the cache put in order and dequantized, a dense mask, in query's dtype."""
    table, seqlens = tensors.get("block_table"), tensors["cache_seqlens"].long()[:, None, None]
    caches = []
    for name in ("key", "value"):
        cache = tensors[f"{name}_cache"]
        if cache.dtype == torch.int8:
            cache = (cache * tensors[f"{name}_scale"][..., None]).to(query.dtype)
        caches.append(cache if table is None else cache[table.long()].transpose(1, 2).flatten(2, 3))
    len_q, len_k = query.shape[2], caches[0].shape[2]
    position = seqlens - len_q + torch.arange(len_q, device=query.device)[:, None]
    index = torch.arange(len_k, device=query.device)
    left, right = window_size
    right = 0 if is_causal else right
    hidden = index >= seqlens
    if left >= 0:
        hidden = hidden | (index < position - left)
    if right >= 0:
        hidden = hidden | (index > position + right)
    bias = torch.zeros(hidden.shape, device=query.device)[:, None]
    if alibi_slopes is not None:
        bias = bias - alibi_slopes[:, None, None] * (position - index).abs()[:, None]
    bias = bias.masked_fill(hidden[:, None], float("-inf"))
    if query.dtype == torch.float64:
        bias = bias.double()
    key, value = (cache.nan_to_num() for cache in caches)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, scale=scale, enable_gqa=True)


def check_case(place, case, dtype):
    query, tensors = case.inputs(dtype, place.device)
    options = case.options(dtype, place.device)
    with place.use():
        output, lse = bigkern.attention_decode_with_lse(query, **tensors, **options)
    left, right = case.window
    arrays = {name: to_oracle(tensors.get(name)) for name in ("key_cache", "value_cache", "cache_seqlens")}
    arrays |= {name: to_oracle(tensors.get(name)) for name in ("block_table", "key_scale", "value_scale")}
    slopes = options["alibi_slopes"]
    slopes = None if slopes is None else to_oracle(slopes.expand(query.shape[0], -1))
    right = 0 if case.is_causal else right
    expected = reference.attention_decode_forward(to_oracle(query), *arrays.values(), slopes, 0.3, left, right)
    from_torch = masked_attention(query, tensors, **options)
    assert_within_policy(output, expected[0], from_torch, dtype, f"{case} {dtype} output")
    assert_within_policy(lse, expected[1], None, dtype, f"{case} {dtype} lse")
    assert lse.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(place, case):
    if place.slow and max(case.seqlens) > 100:
        case = replace(case, seqlens=(150, 65), max_len=160)
    for dtype in place.dtypes:
        if not (case.is_int8 and dtype == torch.float64 and place.backend == "cpu"):
            check_case(place, case, dtype)


@given(
    seqlens=st.lists(st.integers(0, 40), min_size=1, max_size=3), heads=st.sampled_from([(1, 1), (6, 2), (3, 1)]),
    len_q=st.integers(1, 4), dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block_size=st.sampled_from([None, 1, 3, 16]), is_int8=st.booleans(), is_causal=st.booleans(),
    window=st.tuples(st.integers(-1, 30), st.integers(-1, 5)), has_alibi=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_cache(place, seqlens, heads, len_q, dims, block_size, is_int8, is_causal, window, has_alibi, seed):
    torch.manual_seed(seed)
    case = Case(tuple(seqlens), *heads, len_q, 40, *dims, block_size, is_int8, is_causal, window, has_alibi)
    check_case(place, case, torch.float32)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
def test_append_writes_what_the_oracle_writes_and_nothing_else(place, block_size, is_int8):
    case = Case(seqlens=(5, 0, 9), max_len=12, head_dim=20, value_dim=9, block_size=block_size, is_int8=is_int8)
    for dtype in place.dtypes:
        _, tensors = case.inputs(dtype, place.device)
        key = torch.randn(3, 3, 2, 20, device=place.device).to(dtype).transpose(1, 2)
        value = torch.randn(3, 2, 3, 18, device=place.device).to(dtype)[..., ::2]
        key[0, 0, 0], value[1, 1, 2] = 0, NAN
        table = tensors.get("block_table")
        caches = [tensors["key_cache"], tensors["value_cache"]]
        scales = [tensors["key_scale"], tensors["value_scale"]] if is_int8 else []
        expected = [[to_oracle(tensor).copy() for tensor in tensors] for tensors in (caches, scales)]
        arrays = (to_oracle(tensor) for tensor in (key, value, tensors["cache_seqlens"], table))
        reference.cache_append_step(*expected, *arrays)
        versions = [cache._version for cache in caches]
        with place.use():
            assert bigkern.cache_append(key, value, **tensors) is None
        assert all(cache._version > version for cache, version in zip(caches, versions, strict=True))
        for cache, right in zip(caches, expected[0], strict=True):
            difference = abs(to_oracle(cache).astype(float) - right)
            # In another precision a tie may round the other way.
            assert (difference[right == right] <= (1 if is_int8 else 0)).all()
            assert (difference[right == right] > 0).mean() < 0.02
            assert torch.equal(cache.isnan().cpu(), torch.from_numpy(right != right)) or is_int8
        for scale, right in zip(scales, expected[1], strict=True):
            assert_within_policy(scale, right, None, torch.float32, "scale")


def test_a_text_grows_token_by_token(place):
    """Step for step the rows of one causal attention over the whole text."""
    length = 9
    query, key, value = (torch.randn(2, 2, length, 8, device=place.device) for _ in range(3))
    right = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    cache = {name: torch.full((2, 2, 12, 8), NAN, device=place.device) for name in ("key_cache", "value_cache")}
    seqlens = torch.zeros(2, dtype=torch.int32, device=place.device)
    with place.use(), torch.inference_mode():
        for first, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
            new = (key[:, :, first:end], value[:, :, first:end])
            bigkern.cache_append(*new, **cache, cache_seqlens=seqlens)
            seqlens += end - first
            output = bigkern.attention_decode(query[:, :, first:end], **cache, cache_seqlens=seqlens)
            torch.testing.assert_close(output, right[:, :, first:end], rtol=1e-5, atol=1e-6)


def test_strides_do_not_matter(place):
    query, tensors = Case(head_dim=24, value_dim=24).inputs(torch.float32, place.device)
    with place.use():
        right = bigkern.attention_decode(query, **tensors)
        by_token = {n: t.transpose(1, 2).contiguous().transpose(1, 2) if t.ndim == 4 else t for n, t in tensors.items()}
        assert by_token["key_cache"].stride() != tensors["key_cache"].stride()
        query_view = torch.stack((query, query), -1)[..., 0]
        assert torch.equal(bigkern.attention_decode(query_view, **by_token), right)


def test_cpu_leaves_caches_that_are_not_contiguous_to_torch():
    query, tensors = Case().inputs(torch.float32, "cpu")
    right = bigkern.attention_decode(query, **tensors)
    tensors["key_cache"] = tensors["key_cache"].mT.contiguous().mT
    (decision,) = bigkern.explain(bigkern.attention_decode, query, **tensors)
    assert decision.chosen == "torch"
    assert decision.reasons["cpu"] == "the last dimension of a cache is not contiguous"
    torch.testing.assert_close(bigkern.attention_decode(query, **tensors), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("instruction_set_place", [p for p in PLACES if p.backend == "cpu"], ids=str)
def test_a_result_does_not_depend_on_threads_or_on_the_batch(instruction_set_place):
    query, tensors = Case(seqlens=(1900, 700, 30), max_len=2000).inputs(torch.float32, "cpu")
    threads = torch.get_num_threads()
    with instruction_set_place.use():
        right = bigkern.attention_decode(query, **tensors)
        alone = bigkern.attention_decode(query[:1], **{name: tensor[:1] for name, tensor in tensors.items()})
        torch.set_num_threads(1)
        try:
            assert torch.equal(bigkern.attention_decode(query, **tensors), right)
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(alone, right[:1])


def test_empty_sizes(place):
    for case in (Case(seqlens=()), Case(heads=0, kv_heads=0), Case(len_q=0), Case(seqlens=(0,), max_len=0)):
        query, tensors = case.inputs(torch.float32, place.device)
        with place.use():
            output = bigkern.attention_decode(query, **tensors)
            bigkern.cache_append(*(query[:, : case.kv_heads, :0] for _ in range(2)), **tensors)
        assert output.shape == (len(case.seqlens), case.heads, case.len_q, 16)
        assert (output == 0).all()


def test_wrong_lengths_and_pages_are_loud(place):
    query, tensors = Case(seqlens=(5, 6), max_len=8, block_size=4).inputs(torch.float32, place.device)
    wrong = [
        {**tensors, "cache_seqlens": torch.tensor([seqlen, 6], dtype=torch.int32, device=place.device)}
        for seqlen in (10, -1)
    ]
    if place.backend != "torch":
        wrong.append({**tensors, "block_table": tensors["block_table"] + torch.tensor([[100], [0]]).int()})
    with place.use():
        right = bigkern.attention_decode(query, **tensors)
        for arguments in wrong:
            if place.backend == "triton":
                output = bigkern.attention_decode(query, **arguments)
                assert output[0].isnan().all()
                assert torch.equal(output[1], right[1])
                continue
            with pytest.raises(ValueError, match="attention_decode: "):
                bigkern.attention_decode(query, **arguments)


def test_registration_and_compile():
    query, tensors = Case(block_size=16, is_int8=True).inputs(torch.float32, "cpu")
    names = ("key_cache", "value_cache", "cache_seqlens", "block_table", "key_scale", "value_scale")
    arguments = [tensors[name] for name in names]
    opcheck(attention_decode_forward.op, (query, *arguments, None, 0.3, -1, 0))
    new = (torch.randn(3, 2, 2, 16), torch.randn(3, 2, 2, 16))
    opcheck(cache_append_step.op, (arguments[:2], arguments[4:], *new, arguments[2], arguments[3]))

    def step(query, key, value, key_cache, value_cache, seqlens):
        bigkern.cache_append(key, value, key_cache, value_cache, seqlens)
        return bigkern.attention_decode(query, key_cache, value_cache, seqlens + key.shape[2]).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, max_len in ((2, 9), (3, 17)):
        inputs = [torch.randn(batch, heads, 1, 8) for heads in (4, 2, 2)]
        caches = [torch.zeros(batch, 2, max_len, 8) for _ in range(2)]
        seqlens = torch.arange(batch, dtype=torch.int32)
        copies = [cache.clone() for cache in caches]
        torch.testing.assert_close(compiled(*inputs, *caches, seqlens), step(*inputs, *copies, seqlens))
        assert all(torch.equal(cache, copy) for cache, copy in zip(caches, copies, strict=True))


Q, CACHE, SEQLENS = torch.ones(2, 4, 1, 8), torch.ones(2, 2, 5, 8), torch.ones(2, dtype=torch.int32)
SCALE = torch.ones(2, 2, 5)
PLAIN = {"query": Q, "key_cache": CACHE, "value_cache": CACHE, "cache_seqlens": SEQLENS}
INT8 = {"key_cache": CACHE.char(), "value_cache": CACHE.char(), "key_scale": SCALE, "value_scale": SCALE}

ERRORS = [
    ({"query": Q.long()}, TypeError, "attention_decode: query must be floating, got torch.int64"),
    ({"query": Q[0]}, ValueError, "attention_decode: query must be [batch, heads, len_q, head_dim], got (4, 1, 8)"),
    ({"query": Q.half()}, TypeError, "attention_decode: key_cache and value_cache must both be torch.float16 or torch.int8, got torch.float32 and torch.float32"),
    ({"query": torch.ones(2, 3, 1, 8)}, ValueError, "attention_decode: 3 heads of query are no multiple of 2 heads of the caches"),
    ({"query": torch.ones(2, 4, 1, 9)}, ValueError, "attention_decode: query has head_dim 9, key_cache has 8"),
    ({"query": Q.clone().requires_grad_()}, ValueError, "attention_decode: query wants a gradient, and there is none; detach it, or use torch.no_grad()"),
    ({"value_cache": CACHE[:, :, :4]}, ValueError, "attention_decode: key_cache and value_cache must be 4-D with the same first three sizes, got (2, 2, 5, 8) and (2, 2, 4, 8)"),
    ({"value_cache": CACHE.to("meta")}, ValueError, "attention_decode: value_cache is on meta, query on cpu"),
    ({"cache_seqlens": SEQLENS.long()}, ValueError, "attention_decode: cache_seqlens must be torch.int32 [2], got torch.int64 [2]"),
    ({"query": Q[:1], "cache_seqlens": SEQLENS[:1]}, ValueError, "attention_decode: key_cache has 2 sequences, query has 1"),
    ({"block_table": SEQLENS}, ValueError, "attention_decode: block_table must be torch.int32 [2, max_blocks], got torch.int32 [2]"),
    ({"key_scale": SCALE}, ValueError, "attention_decode: key_scale goes with int8 caches, and only with these"),
    ({**INT8, "value_scale": None}, ValueError, "attention_decode: value_scale goes with int8 caches, and only with these"),
    ({**INT8, "key_scale": SCALE[0]}, ValueError, "attention_decode: key_scale must be torch.float32 [2, 2, 5], got torch.float32 [2, 5]"),
    ({"window_size": (-3, 0)}, ValueError, "attention_decode: window_size must be (left, right), each -1 or more, got (-3, 0)"),
    ({"alibi_slopes": torch.ones(3)}, ValueError, "attention_decode: alibi_slopes must be [4] or [2, 4], got (3,)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), ERRORS, ids=[case[2][18:50] for case in ERRORS])
def test_errors_say_what_is_wrong(changes, error, message):
    with pytest.raises(error) as caught:
        bigkern.attention_decode(**{**PLAIN, **changes})
    assert str(caught.value) == message


def test_append_errors_say_what_is_wrong():
    new = torch.ones(2, 2, 1, 8)
    arguments = {"key": new, "value": new, "key_cache": CACHE, "value_cache": CACHE, "cache_seqlens": SEQLENS}
    for changes, error, message in (
        ({"value": new.half()}, TypeError, "cache_append: key and value must have the same dtype, got torch.float32 and torch.float16"),
        ({"value": new[:, :1]}, ValueError, "cache_append: value must be [2, 2, 1, 8], got [2, 1, 1, 8]"),
        ({"key": new.clone().requires_grad_()}, ValueError, "cache_append: key wants a gradient, and there is none; detach it, or use torch.no_grad()"),
        ({"cache_seqlens": SEQLENS + 4}, ValueError, "attention_decode: sequence 0 needs 6 tokens, its cache holds 5"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            bigkern.cache_append(**{**arguments, **changes})
        assert str(caught.value) == message


def test_forced_backend_refuses_what_it_does_not_declare():
    with bigkern.use_backend("triton"), pytest.raises(RuntimeError, match="float64 is left to PyTorch on a GPU"):
        bigkern.attention_decode(Q.double(), CACHE.double(), CACHE.double(), SEQLENS)
    with bigkern.use_backend("cuda"), pytest.raises(RuntimeError, match="no cuda kernel is written"):
        bigkern.attention_decode(Q, CACHE, CACHE, SEQLENS)
