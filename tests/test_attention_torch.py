"""attention as a citizen of PyTorch: its own function's results, autograd, compile, autocast, checkpoint, errors."""

import functools
import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import bigkern
import bigkern.functional as F
from bigkern.ops.attention import attention_backward, attention_forward
from tests.attention_cases import Case

CALLS = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"scale": -2.0},
    {"attn_mask": torch.rand(9, 20) < 0.5},
    {"attn_mask": torch.zeros(9, 20, dtype=torch.bool)},
    {"attn_mask": torch.full((1, 20), float("-inf"))},
    {"attn_mask": torch.randn(3, 1, 9, 1)},
    {"attn_mask": torch.tensor([float("inf")] + [0.0] * 19)[None]},
    {"attn_mask": torch.tensor([float("nan")] + [0.0] * 19)[None]},
    {"attn_mask": torch.tensor([float("-inf")] + [0.0] * 19)[None]},
    {"dropout_p": 1.0},
]


@pytest.mark.parametrize("options", CALLS, ids=lambda options: "-".join(options) or "plain")
def test_is_scaled_dot_product_attention(place, options):
    query, key, value = (torch.randn(3, 2, length, 8, device=place.device) for length in (9, 20, 20))
    options = {k: v.to(place.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    with place.use():
        output = F.scaled_dot_product_attention(query, key, value, **options)
    with sdpa_kernel(SDPBackend.MATH):
        right = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(output, right, equal_nan=True, rtol=1e-5, atol=1e-6)


def double_inputs(heads=2, kv_heads=2, len_q=3, len_k=5, mask=None):
    return Case(1, heads, kv_heads, len_q, len_k, 4, 3, mask).inputs(torch.float64, "cpu")


DERIVATIVE_CASES = [
    ({}, {}),
    ({"heads": 4, "kv_heads": 2}, {}),
    ({"len_q": 4, "len_k": 3}, {"is_causal": True}),
    ({"mask": "additive"}, {}),
    ({"mask": "additive_of_positions"}, {}),
    ({"mask": "bool_fully_masked_rows"}, {}),
    ({"mask": "additive_fully_masked_rows"}, {}),
    ({}, {"dropout_p": 0.4}),
    ({"mask": "additive", "len_q": 4}, {"dropout_p": 0.4}),
]


def attention_of(inputs, options):
    """attention as a function of nothing but its floating tensors: bool masks bound, the generator reset."""
    floating = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    bool_mask = inputs[3] if len(floating) == 3 else None

    def call(query, key, value, mask=bool_mask):
        torch.manual_seed(5)
        output, lse = bigkern.attention_with_lse(query, key, value, mask, enable_gqa=True, **options)
        return output, lse.masked_fill(lse == float("-inf"), 0)

    return call, floating


@pytest.mark.parametrize(("sizes", "options"), DERIVATIVE_CASES, ids=str)
def test_first_and_second_derivatives(place, sizes, options):
    if torch.float64 not in place.dtypes:
        pytest.skip("needs float64")
    call, inputs = attention_of(double_inputs(**sizes), options)
    if sizes.get("mask") == "additive_fully_masked_rows":
        # Finite differences of -inf are NaN; that mask is a constant here.
        call, inputs = functools.partial(call, mask=inputs[3].detach()), inputs[:3]
    with place.use():
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_output_alone(place, wanted):
    query, key, value, _ = Case(len_q=4, len_k=6).inputs(torch.float32, place.device)
    with place.use():
        outputs = bigkern.attention_with_lse(query, key, value)
        grads = torch.autograd.grad(outputs[wanted].sum(), (query, key, value))
        both = bigkern.attention_with_lse(query, key, value)
        rights = torch.autograd.grad(both[wanted].sum() + 0 * both[1 - wanted].sum(), (query, key, value))
    for grad, right in zip(grads, rights, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-6, atol=1e-6)
    assert (grads[2] == 0).all() == (wanted == 1)


@pytest.mark.parametrize(
    ("mask", "dropout_p", "uses_lse"), [(None, 0.0, False), ("bool", 0.5, True), ("additive", 0.0, True)]
)
def test_registration_is_complete(mask, dropout_p, uses_lse):
    query, key, value, mask = Case(1, 2, 1, 3, 4, 4, 5, mask).inputs(torch.float32, "cpu")
    rng_state = torch.tensor([3, 4]) if dropout_p else None
    arguments = (query, key, value, mask, rng_state, dropout_p, False, 0.5, None, -1, -1)
    opcheck(attention_forward.op, arguments)
    output, lse = (result.detach() for result in attention_forward(*arguments))
    grads = (torch.randn_like(output).requires_grad_(), torch.randn_like(lse) if uses_lse else None)
    needs_mask_grad = mask is not None and mask.requires_grad
    saved = (query, key, value, mask, output, lse, rng_state, dropout_p, False, 0.5, None, -1, -1)
    opcheck(attention_backward.op, (*grads, *saved, needs_mask_grad))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.5}, {"mask": True}], ids=str)
def test_compiles_with_dynamic_shapes(options):
    options = dict(options)
    masked = options.pop("mask", False)

    def step(query, key, value, mask):
        output, lse = bigkern.attention_with_lse(query * 2, key, value, mask, enable_gqa=True, **options)
        return output.sin() + lse[..., None]

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for len_q, len_k, head_dim in ((9, 20, 8), (17, 5, 16)):
        inputs = [
            torch.randn(2, heads, n, head_dim, requires_grad=True) for heads, n in ((4, len_q), (2, len_k), (2, len_k))
        ]
        inputs.append(torch.randn(len_q, len_k, requires_grad=True) if masked else None)
        results = []
        for function in (compiled, step):
            torch.manual_seed(1)
            output = function(*inputs)
            results.append((output, *torch.autograd.grad(output.sum(), inputs[: 4 if masked else 3])))
        for ours, right in zip(*results, strict=True):
            torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_precision_of_everything_but_float64(place, dtype):
    query, key, value, mask = Case(mask="additive_of_positions").inputs(torch.float32, place.device)
    value = value.detach().half().requires_grad_()
    with place.use():
        with torch.autocast(place.device, dtype):
            output, lse = bigkern.attention_with_lse(query, key, value, mask)
            if torch.float64 in place.dtypes:
                double = bigkern.attention(*(tensor.double() for tensor in (query, key, value)))
                assert double.dtype == torch.float64
            grads = torch.autograd.grad(output.float().sum() + lse.sum(), (query, key, value, mask))
        lowered = [tensor.detach().to(dtype).requires_grad_() for tensor in (query, key, value, mask)]
        right, right_lse = bigkern.attention_with_lse(*lowered)
        right_grads = torch.autograd.grad(right.float().sum() + right_lse.sum(), lowered)
    assert output.dtype == dtype
    assert lse.dtype == torch.float32
    assert torch.equal(output, right)
    assert torch.equal(lse, right_lse)
    for tensor, grad, right_grad in zip((query, key, value, mask), grads, right_grads, strict=True):
        assert grad.dtype == tensor.dtype
        assert torch.equal(grad, right_grad.to(grad.dtype))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_redraws_the_same_dropout(use_reentrant):
    inputs = [torch.randn(2, 2, 9, 8, requires_grad=True) for _ in range(3)]

    def block(query, key, value):
        return bigkern.attention(query, key, value, dropout_p=0.5).square()

    results = []
    for function in (block, lambda *args: checkpoint(block, *args, use_reentrant=use_reentrant)):
        torch.manual_seed(3)
        output = function(*inputs)
        torch.rand(5)  # what follows in the generator is not what the recomputation sees
        for tensor in inputs:
            tensor.grad = None
        output.sum().backward()
        results.append((output, *(tensor.grad for tensor in inputs)))
    for ours, right in zip(*results, strict=True):
        assert torch.equal(ours, right)


LONG_SEQUENCE = """
import resource, torch, bigkern
torch.set_num_threads(2)
def step(length):
    inputs = [torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(3)]
    bigkern.attention(*inputs, is_causal=True).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
step(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(16384)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_scores():
    environment = {**os.environ, "BIGKERN_BACKEND": "auto"}
    found = subprocess.run([sys.executable, "-c", LONG_SEQUENCE], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    # The scores of 16384 x 16384 would take 1 GiB; kilobytes are counted here.
    assert int(found.stdout) < 128 * 1024


def test_explain_names_the_backend_and_the_reasons():
    inputs = [torch.randn(1, 1, 256, 300)] * 3
    (decision,) = bigkern.explain(F.scaled_dot_product_attention, *inputs)
    assert decision.kernel == "attention_forward"
    assert decision.chosen == "cpu"
    with bigkern.use_backend("triton"):
        (decision,) = bigkern.explain(bigkern.attention, *inputs)
    assert decision.chosen is None
    assert decision.reasons["triton"] == "head_dim 300 is above 256"


@pytest.mark.parametrize("len_k", [1, 2, 5, 40])
def test_auto_shows_nan_at_every_length(len_k):
    """PyTorch's own CPU op turns a NaN query into zeros where there are few keys."""
    query, key, value = torch.full((1, 1, 3, 8), float("nan")), torch.randn(1, 1, len_k, 8), torch.randn(1, 1, len_k, 8)
    assert bigkern.attention(query, key, value).isnan().all()


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


Q, K = ones(2, 4, 3, 8), ones(2, 4, 5, 8)

ERRORS = [
    ((Q.long(), K.long(), K.long()), {}, TypeError, "attention: query must be floating, got torch.int64"),
    ((Q.half(), K, K), {}, TypeError, "attention: query, key and value must have the same dtype, got torch.float16, torch.float32 and torch.float32"),
    ((Q, K.to("meta"), K), {}, ValueError, "attention: query, key and value must be on the same device, got cpu, meta and cpu"),
    ((ones(8), K, K), {}, ValueError, "attention: query, key and value must have at least 2 dimensions, got 1, 4 and 4"),
    ((Q, ones(2, 4, 5, 9), K), {}, ValueError, "attention: query has head_dim 8, key has 9"),
    ((Q, K, ones(2, 4, 6, 8)), {}, ValueError, "attention: key has length 5, value has 6"),
    ((Q, ones(2, 3, 5, 8), ones(2, 3, 5, 8)), {}, ValueError, "attention: leading dimensions (2, 4), (2, 3) and (2, 3) of query, key and value do not broadcast (enable_gqa=True lets key and value have fewer heads)"),
    ((Q, ones(3, 4, 5, 8), ones(3, 4, 5, 8)), {"enable_gqa": True}, ValueError, "attention: leading dimensions (2, 4), (3, 4) and (3, 4) of query, key and value do not broadcast"),
    ((Q, ones(2, 3, 5, 8), ones(2, 3, 5, 8)), {"enable_gqa": True}, ValueError, "attention: 4 heads of query are no multiple of 3 heads of key and value"),
    ((Q, ones(2, 0, 5, 8), ones(2, 0, 5, 8)), {"enable_gqa": True}, ValueError, "attention: 4 heads of query are no multiple of 0 heads of key and value"),
    ((Q, ones(2, 2, 5, 8), ones(2, 1, 5, 8)), {"enable_gqa": True}, ValueError, "attention: key has 2 heads, value has 1"),
    ((Q, K, K, ones(3, 4)), {}, ValueError, "attention: attn_mask of shape (3, 4) does not broadcast to (2, 4, 3, 5)"),
    ((Q, K, K, ones(1, 2, 4, 3, 5)), {}, ValueError, "attention: attn_mask of shape (1, 2, 4, 3, 5) does not broadcast to (2, 4, 3, 5)"),
    ((Q, K, K, ones(3, 5, dtype=torch.int64)), {}, TypeError, "attention: attn_mask must be torch.bool or torch.float32, got torch.int64"),
    ((Q.half(), K.half(), K.half(), ones(3, 5, dtype=torch.bfloat16)), {}, TypeError, "attention: attn_mask must be torch.bool, torch.float32 or torch.float16, got torch.bfloat16"),
    ((Q, K, K, ones(3, 5, device="meta")), {}, ValueError, "attention: attn_mask is on meta, query on cpu"),
    ((Q, K, K, ones(3, 5)), {"is_causal": True}, ValueError, "attention: attn_mask and is_causal=True exclude each other"),
    ((Q, K, K), {"dropout_p": 1.5}, ValueError, "attention: dropout_p must be between 0 and 1, got 1.5"),
    ((Q, K, K), {"dropout_p": -0.5}, ValueError, "attention: dropout_p must be between 0 and 1, got -0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS, ids=[case[3][11:50] for case in ERRORS])
def test_errors_say_what_is_wrong(arguments, options, error, message):
    with pytest.raises(error) as caught:
        F.scaled_dot_product_attention(*arguments, **options)
    assert str(caught.value) == message


def test_forced_backend_refuses_what_it_does_not_declare():
    inputs = [torch.randn(1, 1, 4, 8, dtype=torch.float64)] * 3
    with bigkern.use_backend("triton"), pytest.raises(RuntimeError, match="float64 is left to PyTorch on a GPU"):
        bigkern.attention(*inputs)
