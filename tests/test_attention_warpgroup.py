"""attention's kernels for Hopper: against the oracle, and which calls they take."""

import pytest
import torch

from bigkern.cuda.attention import attention_backward, attention_forward
from bigkern.cuda.machine import Recorder, use_machine
from tests.attention_cases import NAMES, Case, oracle, torch_answer
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import assert_within_policy

pytestmark = pytest.mark.skipif(cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable()))


class Hopper(cuda_emulator.Emulator):
    """The emulator with warpgroups, and the sources that it ran."""

    def __init__(self):
        super().__init__(90)
        self.sources = []

    def launch(self, build, kernel, *args):
        self.sources.append(build.source)
        super().launch(build, kernel, *args)


def forward(query, key, value, is_causal, scale):
    """(output, lse), computed by the kernel for Hopper."""
    output = torch.full((*query.shape[:3], value.shape[3]), float("nan"), dtype=query.dtype)
    lse = torch.full(query.shape[:3], float("nan"))
    with use_machine(Hopper()) as hopper:
        attention_forward(query, key, value, None, None, 0.0, is_causal, scale, None, -1, -1, output, lse)
    assert hopper.sources == ["attention_warpgroup"]
    return output, lse


def backward(grad_output, grad_lse, query, key, value, output, lse, is_causal, scale):
    """(grad_query, grad_key, grad_value), computed by the kernels for Hopper."""
    grads = [torch.full(tensor.shape, float("nan"), dtype=tensor.dtype) for tensor in (query, key, value)]
    with use_machine(Hopper()) as hopper:
        inputs = (grad_output, grad_lse, query, key, value, None, output, lse)
        attention_backward(*inputs, None, 0.0, is_causal, scale, None, -1, -1, False, *grads, torch.empty(0))
    assert hopper.sources == ["attention_delta", "attention_backward_warpgroup", "attention_backward_warpgroup"]
    return grads


def inputs_of(case, dtype):
    return [tensor.detach() for tensor in case.inputs(dtype, "cpu")[:3]]


def check(case, dtype, inputs):
    scale = case.scale_or_default()
    output, lse = ours = forward(*inputs, case.is_causal, scale)
    grad_output, grad_lse = torch.randn(output.shape).to(dtype), torch.randn(lse.shape)
    if max(inputs[0].shape[3], inputs[2].shape[3]) <= 128:
        ours += tuple(backward(grad_output, grad_lse, *inputs, output, lse, case.is_causal, scale))
    leaves = (*(tensor.clone().requires_grad_() for tensor in inputs), None)
    expected, magnitudes = oracle(leaves, grad_output, grad_lse, case.is_causal, scale)
    theirs = torch_answer(leaves, grad_output, grad_lse, case.is_causal, scale)
    for name, own, right, other in zip(NAMES, ours, expected, theirs, strict=False):
        assert_within_policy(own, right, other.detach(), None, f"{case} {dtype} {name}", magnitudes.get(name))


# Forward, a block has at dim 64 three consumers and four stages of 128 keys, at 128 two and three, at 256 two and two
# of 64. Backward, two consumers and four stages of 64.
CASES = [
    (Case(1, 1, None, 1, 1, 64), torch.bfloat16),
    (Case(2, 2, None, 17, 33, 16, 24), torch.float16),
    (Case(2, 2, 1, 200, 300, 64, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 65, 650, 64), torch.float16),
    (Case(1, 2, 1, 400, 130, 64, is_causal=True), torch.float16),
    (Case(1, 1, None, 130, 530, 128), torch.bfloat16),
    (Case(1, 3, 1, 129, 128, 128, is_causal=True), torch.float16),
    (Case(1, 1, None, 70, 257, 128, 64, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 140, 70, 72, 120, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 64, 200, 256), torch.bfloat16),
    (Case(1, 1, None, 130, 257, 192, 128, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 20, 40, 64, scale=3.0), torch.float16),
]


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)
def test_matches_oracle(case, dtype):
    check(case, dtype, inputs_of(case, dtype))


def test_strides():
    case = Case(2, 2, None, 40, 50, 64)
    inputs = inputs_of(case, torch.bfloat16)
    check(case, torch.bfloat16, [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs])
    wide = [torch.nn.functional.pad(tensor, (8, 16), value=99)[..., 8:-16] for tensor in inputs]
    check(case, torch.bfloat16, wide)
    one_head = [tensor[:, :1] for tensor in inputs]  # its stride is whatever it was
    one_head = [tensor.as_strided(tensor.shape, (*tensor.stride()[:1], 3, *tensor.stride()[2:])) for tensor in one_head]
    check(case, torch.bfloat16, one_head)


def test_numbers_that_are_not_finite_stay_in_their_rows():
    query, key, value = inputs_of(Case(1, 2, None, 70, 140, 64), torch.bfloat16)
    right, right_lse = forward(query, key, value, False, 0.125)
    bad_query, bad_value = query.clone(), value.clone()
    bad_query[0, 1, 3, 2], bad_query[0, 0, 65, 0] = float("nan"), float("inf")
    bad_value[0, 1, 4, 2] = float("inf")
    output, lse = forward(bad_query, key, value, False, 0.125)
    row = torch.zeros(1, 2, 70, dtype=torch.bool)
    row[0, 1, 3] = row[0, 0, 65] = True
    assert output[row].isnan().all()
    assert lse[row].isnan().all()
    assert torch.equal(output[~row], right[~row])
    assert torch.equal(lse[~row], right_lse[~row])
    output, _ = forward(query, key, bad_value, False, 0.125)
    assert not output[0, 1, :, 2].isfinite().any()
    output[0, 1, :, 2] = right[0, 1, :, 2]
    assert torch.equal(output, right)


def test_large_scores_do_not_overflow():
    query, key = torch.full((1, 1, 2, 64), 100.0), torch.randn(1, 1, 140, 64)
    key[0, 0, 133] = 10.0
    query, key, value = query.half(), key.half(), torch.randn(1, 1, 140, 64).half()
    output, lse = forward(query, key, value, False, 1.0)
    assert torch.equal(output, value[:, :, 133:134].expand(1, 1, 2, 64))
    assert ((lse - 64000).abs() <= 64000 * 2**-23).all()


def sources_of(query, key, value, arch=90, attn_mask=None, dropout_p=0.0, scale=1.0, grad_output=None):
    """The kernels of (the forward pass, the backward pass)."""
    output, lse = torch.empty((*query.shape[:3], value.shape[3]), dtype=query.dtype), torch.empty(query.shape[:3])
    rng_state = torch.tensor([1, 2]) if dropout_p else None
    grad_output = output if grad_output is None else grad_output
    grads = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (query, key, value)]
    with use_machine(Recorder(arch)) as recorder:
        attention_forward(query, key, value, attn_mask, rng_state, dropout_p, False, scale, None, -1, -1, output, lse)
        inputs = (grad_output, None, query, key, value, attn_mask, output, lse)
        attention_backward(*inputs, rng_state, dropout_p, False, scale, None, -1, -1, False, *grads, torch.empty(0))
    first, delta, *last = (launch.build.source for launch in recorder.launches)
    assert delta == "attention_delta"
    assert last[0] == last[1]
    return first, last[0]


def test_other_calls_take_the_other_kernels():
    def tensor(dim=64, dtype=torch.float16):
        return torch.zeros(1, 2, 8, dim, dtype=dtype)

    plain = [tensor(), tensor(), tensor()]
    warpgroups, warps = ("attention_warpgroup", "attention_backward_warpgroup"), ("attention", "attention_backward")
    assert sources_of(*plain) == warpgroups
    assert sources_of(*plain, arch=80) == warps
    assert sources_of(*plain, arch=100) == warps
    assert sources_of(*plain, attn_mask=torch.ones(1, 2, 8, 8, dtype=torch.bool)) == warps
    assert sources_of(*plain, dropout_p=0.5) == warps
    assert sources_of(*plain, scale=-1.0) == warps
    assert sources_of(*plain, scale=0.0) == warps
    assert sources_of(*(tensor(dtype=torch.float32) for _ in range(3))) == warps
    assert sources_of(tensor(), tensor(), tensor(20)) == warps  # rows of 40 bytes
    assert sources_of(tensor(65)[..., 1:], tensor(), tensor()) == warps
    assert sources_of(tensor(), tensor()[:, :1].expand(1, 2, 8, 64), tensor()) == warps
    assert sources_of(tensor(136), tensor(136), tensor()) == (warpgroups[0], warps[1])
    padded = tensor(64)[..., :20]  # rows of 128 bytes, of which grad_query has 40
    assert sources_of(padded, padded, tensor()) == (warpgroups[0], warps[1])
    expanded = torch.ones((), dtype=torch.float16).expand(1, 2, 8, 64)
    assert sources_of(*plain, grad_output=expanded) == (warpgroups[0], warps[1])
