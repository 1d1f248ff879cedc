import pytest
import torch

import bigkern
from tests.support import assert_within_policy

BATCH, HEADS, LEN_Q, LEN_K, WIDTH = 2, 4, 5, 7, 32
MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(LEN_Q, LEN_K, dtype=torch.bool).triu(1), "is_causal": True},
    "additive": {"attn_mask": torch.linspace(-1, 1, LEN_Q * LEN_K).view(LEN_Q, LEN_K)},
    "per head": {"attn_mask": torch.arange(BATCH * HEADS * LEN_Q * LEN_K).view(-1, LEN_Q, LEN_K) % 5 == 1},
    "padding": {"key_padding_mask": torch.arange(LEN_K).expand(BATCH, LEN_K) >= torch.tensor([[5], [7]])},
    "both": {
        "attn_mask": torch.linspace(-1, 1, LEN_Q * LEN_K).view(LEN_Q, LEN_K),
        "key_padding_mask": torch.zeros(BATCH, LEN_K).index_fill(1, torch.tensor([2]), float("-inf")),
    },
}


def twins(**options):
    """(ours, PyTorch's, PyTorch's in float64) with the same weights."""
    ours = bigkern.nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    others = [torch.nn.MultiheadAttention(WIDTH, HEADS, dtype=d, **options) for d in (torch.float32, torch.float64)]
    for other in others:
        other.load_state_dict(ours.state_dict())
    return ours, *others


def run(module, inputs, masks):
    dtype = next(module.parameters()).dtype
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    masks = {name: m.to(dtype) if torch.is_tensor(m) and m.is_floating_point() else m for name, m in masks.items()}
    output, weights = module(*leaves, need_weights=False, **masks)
    assert weights is None
    grads = torch.autograd.grad(output.square().sum(), (*leaves, *module.parameters()))
    return [output, *grads]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"bias": False}, {"kdim": 20, "vdim": 24}])
def test_output_and_gradients_match_pytorch(options, mask):
    modules = twins(**options)
    shapes = (
        (BATCH, LEN_Q, WIDTH),
        (BATCH, LEN_K, options.get("kdim", WIDTH)),
        (BATCH, LEN_K, options.get("vdim", WIDTH)),
    )
    inputs = [torch.randn(shape) for shape in shapes]
    if not options.get("batch_first"):
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    results = [run(module, inputs, MASKS[mask]) for module in modules]
    for ours, theirs, oracle in zip(*results, strict=True):
        # The bias of the keys moves all scores of a row alike: its gradient is rounding around 0.
        scale = max(1.0, float(oracle.detach().abs().max()))
        assert_within_policy(ours, oracle, theirs, magnitude=torch.full_like(oracle, scale))


def test_without_a_batch():
    ours, theirs, _ = twins()
    inputs = torch.randn(LEN_Q, WIDTH), torch.randn(LEN_K, WIDTH), torch.randn(LEN_K, WIDTH)
    hidden = torch.arange(LEN_K) == 3
    for masks in ({}, {"key_padding_mask": hidden}):
        expected = theirs(*inputs, need_weights=False, **masks)[0]
        torch.testing.assert_close(ours(*inputs, need_weights=False, **masks)[0], expected, rtol=1e-5, atol=1e-5)


def test_weights_are_pytorchs():
    ours, theirs, _ = twins(batch_first=True)
    x = torch.randn(BATCH, LEN_Q, WIDTH)
    for result, expected in zip(ours(x, x, x), theirs(x, x, x), strict=True):
        torch.testing.assert_close(result, expected)


def test_dropout_only_in_training():
    ours, _, _ = twins(dropout=0.5, batch_first=True)
    x = torch.randn(BATCH, LEN_Q, WIDTH)
    assert not torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])


def test_causal_without_a_mask_is_an_error():
    module = bigkern.nn.MultiheadAttention(WIDTH, HEADS)
    x = torch.randn(LEN_Q, BATCH, WIDTH)
    with pytest.raises(RuntimeError, match="need attn_mask if is_causal is given"):
        module(x, x, x, need_weights=False, is_causal=True)
