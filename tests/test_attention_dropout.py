"""attention's dropout: the very mask of the oracle on every backend, and torch's generator behind it."""

import numpy as np
import pytest
import torch

import bigkern
from bigkern.ops.attention import attention_forward
from bigkern.reference import philox
from tests.attention_cases import NAMES, Case, dense_scores, oracle, torch_lse
from tests.support import assert_within_policy, to_oracle

# A seed of 64 bits and a negative offset: every bit that the counter and the key take.
RNG_STATES = [(0, 0), (123, 4), (-(2**62) - 12345, -7), (2**63 - 1, 2**40 + 3)]


def mask_of(output, dropout_p):
    """Which elements attention kept, where every probability is 1 / len_k and value is the identity matrix."""
    kept = output != 0
    right = 1 / (1 - dropout_p) / output.shape[-1]
    assert ((output[kept] - right).abs() <= 1e-5 * right).all()
    return kept


def uniform_inputs(batch, heads, len_q, len_k, device):
    query = torch.zeros(batch, heads, len_q, 8, device=device)
    key = torch.randn(batch, heads, len_k, 8, device=device)
    value = torch.eye(len_k, device=device).expand(batch, heads, len_k, len_k)
    return query, key, value


@pytest.mark.parametrize("rng_state", RNG_STATES)
@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.999])
def test_mask_is_the_oracles(place, dropout_p, rng_state):
    state = torch.tensor(rng_state, device=place.device)
    for len_q, len_k in ((5, 7), (37, 70)) if place.slow else ((1, 1), (5, 7), (37, 70), (130, 67)):
        with place.use():
            output, _ = attention_forward(
                *uniform_inputs(2, 3, len_q, len_k, place.device), None, state, dropout_p, False, 1.0, None, -1, -1
            )
        right = philox.dropout_keep(np.array(rng_state), dropout_p, 2, 3, len_q, len_k)
        assert np.array_equal(to_oracle(mask_of(output, dropout_p)), right)


def torch_with_mask(query, key, value, mask, keep, dropout_p, is_causal, scale):
    """What a PyTorch user would write for this mask of dropout."""
    value = value.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return dense_scores(query, key, mask, is_causal, scale).softmax(-1) * keep / (1 - dropout_p) @ value


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(len_q=1, len_k=3, head_dim=8),
        Case(heads=4, kv_heads=2, len_q=70, len_k=37, is_causal=True),
        Case(batch=3, heads=1, len_q=20, len_k=131, head_dim=24, value_dim=40, mask="additive"),
        Case(mask="bool"),
        Case(mask="additive_of_positions"),
    ],
    ids=str,
)
def test_gradients_see_the_same_mask(place, case):
    dropout_p, rng_state = 0.3, torch.tensor([77 + (5 << 32), 12], device=place.device)
    case = case.on(place)
    scale = case.scale_or_default()
    for dtype in place.dtypes:
        inputs = case.inputs(dtype, place.device)
        query, key, value, mask = inputs
        dense = (*query.shape[:3], key.shape[2])
        grad_output = torch.randn((*dense[:3], value.shape[3]), device=place.device).to(dtype)
        grad_lse = torch.randn(dense[:3], device=place.device, dtype=torch.promote_types(dtype, torch.float32))
        wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        with place.use():
            full_mask = None if mask is None else mask.expand(dense)
            output, lse = attention_forward(
                query, key, value, full_mask, rng_state, dropout_p, case.is_causal, scale, None, -1, -1
            )
            grads = torch.autograd.grad((output, lse), wanted, (grad_output, grad_lse))
        expected, magnitudes = oracle(inputs, grad_output, grad_lse, case.is_causal, scale, rng_state, dropout_p)
        keep = torch.from_numpy(philox.dropout_keep(to_oracle(rng_state), dropout_p, *dense)).to(place.device)
        right_output = torch_with_mask(*inputs, keep, dropout_p, case.is_causal, scale)
        right_lse = torch_lse(*inputs, case.is_causal, scale)
        torch_grads = torch.autograd.grad((right_output, right_lse), wanted, (grad_output, grad_lse))
        theirs = (right_output, right_lse, *torch_grads)
        for name, ours, right, other in zip(NAMES, (output, lse, *grads), expected, theirs, strict=False):
            assert_within_policy(ours, right, other, what=f"{case} {dtype} {name}", magnitude=magnitudes.get(name))


def test_manual_seed_reproduces_forward_and_backward(place):
    query, key, value, _ = Case(len_q=9, len_k=21).inputs(torch.float32, place.device)

    def call(seed):
        torch.manual_seed(seed)
        with place.use():
            output = bigkern.attention(query, key, value, dropout_p=0.5)
            return output, *torch.autograd.grad(output.square().sum(), (query, key, value))

    first, again, other = call(1), call(1), call(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_two_calls_draw_two_masks(place):
    inputs = uniform_inputs(1, 2, 9, 40, place.device)
    with place.use():
        first, second = (bigkern.attention(*inputs, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first != 0, second != 0)


@pytest.mark.parametrize("dropout_p", [0.05, 0.5, 0.9])
def test_share_of_kept_probabilities(place, dropout_p):
    batch, heads, len_q, len_k = (1, 2, 64, 64) if place.slow else (2, 4, 128, 128)
    with place.use():
        output = bigkern.attention(*uniform_inputs(batch, heads, len_q, len_k, place.device), dropout_p=dropout_p)
    kept = mask_of(output, dropout_p).double()
    sigma = (dropout_p * (1 - dropout_p)) ** 0.5
    assert abs(kept.mean().item() - (1 - dropout_p)) <= 4 * sigma / kept.numel() ** 0.5
    for dim in range(4):  # no batch, head, row or column is treated differently
        others = [other for other in range(4) if other != dim]
        share = kept.mean(others)
        assert (share - (1 - dropout_p)).abs().max() <= 5 * sigma / (kept.numel() / kept.shape[dim]) ** 0.5
    # neighbours are independent
    centered = kept - kept.mean()
    for dim in (2, 3):
        product = centered.narrow(dim, 1, kept.shape[dim] - 1) * centered.narrow(dim, 0, kept.shape[dim] - 1)
        assert product.mean().abs() <= 5 * sigma**2 / product.numel() ** 0.5


def test_dropping_everything_gives_zeros_and_lse(place):
    query, key, value, _ = Case(len_q=4, len_k=6).inputs(torch.float32, place.device)
    with place.use():
        output, lse = bigkern.attention_with_lse(query, key, value, dropout_p=1.0)
        _, right_lse = bigkern.attention_with_lse(query, key, value)
        grads = torch.autograd.grad(output.sum(), (query, key, value))
    assert (output == 0).all()
    assert torch.equal(lse, right_lse)
    assert all((grad == 0).all() for grad in grads)
