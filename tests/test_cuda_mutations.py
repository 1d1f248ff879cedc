"""Kernels broken on purpose: each must be found by the emulator or by the oracle, or these find less than they claim.

A mutation is one exact replacement in one file of csrc/cuda. What must find it is the check of the op that the file
belongs to; the same check passes on the sources as they are.
"""

import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import bigkern
from bigkern.cuda.machine import use_machine
from bigkern.ops.add_layer_norm import add_layer_norm_forward
from bigkern.policy import assert_within_policy
from tests.cuda_emulator import machine as cuda_emulator
from tests.cuda_emulator.machine import KERNELS, Emulator, EmulatorError

pytestmark = pytest.mark.skipif(cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable()))


def _with_gradients(function, leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    torch.manual_seed(1)
    grad_output = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def _check(function, peer, leaves):
    """`function` on the substituted machine against `peer` in float64, by the numerical policy."""
    with bigkern.use_backend("cuda"):
        ours = _with_gradients(function, leaves)
    expected = _with_gradients(peer, [leaf.double() for leaf in leaves])
    theirs = _with_gradients(peer, leaves)
    for own, right, other in zip(ours, expected, theirs, strict=True):
        assert_within_policy(own, right, other)


def check_quantize():
    input = torch.randn(5, 700)
    with bigkern.use_backend("cuda"):
        results = bigkern.quantize(input, axis=0)
    for own, right in zip(results[:2], bigkern.quantize(input, axis=0)[:2], strict=True):
        assert torch.equal(own, right)


def check_cross_entropy():
    target = torch.tensor([3, -100, 598, 0])
    call = lambda module: lambda input: module.cross_entropy(input, target, label_smoothing=0.1)  # noqa: E731
    _check(call(bigkern), call(F), [torch.randn(4, 599) * 3])


def check_linear_act():
    leaves = [torch.randn(shape).to(torch.float16) for shape in ((70, 328), (45, 328), (45,))]
    _check(bigkern.linear_act, lambda x, w, b: F.relu(F.linear(x, w, b)), leaves)


def check_int8_linear():
    input, weight = torch.randn(20, 150), torch.randn(45, 150)
    qweight, weight_scale, _ = bigkern.quantize(weight, axis=0)
    with bigkern.use_backend("cuda"):
        output = bigkern.int8_linear(input, qweight, weight_scale)
    with bigkern.use_backend("reference"):
        expected = bigkern.int8_linear(input, qweight, weight_scale)
    assert_within_policy(output, expected.double(), None)


def check_layer_norm():
    """Several teams a block, several rows a team."""
    leaves = [torch.randn(shape) for shape in ((130, 40), (40,), (40,))]
    _check(lambda x, w, b: bigkern.layer_norm(x, (40,), w, b), lambda x, w, b: F.layer_norm(x, (40,), w, b), leaves)


def check_adam():
    shapes = ((13, 11), (4099,))
    lists = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    lists += [
        [torch.rand(shape) for shape in shapes],
        [],
        [torch.tensor(2.0) for _ in shapes],
    ]  # of one count: in one launch
    results = []
    for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64), ("torch", torch.float32)):
        copies = [[tensor.to(dtype, copy=True) for tensor in tensors] for tensors in lists]
        with bigkern.use_backend(backend):
            bigkern.adam(*copies, lr=0.1, weight_decay=0.1)
        results.append([torch.cat([t.reshape(-1) for t in tensors]) for tensors in copies[:4]])
    for own, right, other in zip(*results, strict=True):
        assert_within_policy(own, right, other)


def check_add_layer_norm():
    tensors = [torch.randn(shape) for shape in ((5, 40), (5, 40), (40,), (40,))]
    call = lambda: add_layer_norm_forward(*tensors, torch.tensor([77 << 33, 12]), 1e-5, 0.3, True)  # noqa: E731
    with bigkern.use_backend("cuda"):
        results = call()
    with bigkern.use_backend("reference"):
        expected = call()
    for own, right in zip(results, expected, strict=True):
        assert_within_policy(own, right.double(), None)


def check_attention():
    leaves = [torch.randn(1, 2, length, 24).to(torch.float16) for length in (150, 150, 150)]
    peer = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    _check(lambda q, k, v: bigkern.attention(q, k, v, is_causal=True), peer, leaves)


def check_wide_linear():
    """Big enough for Hopper's products: several steps of k for each stage, several tiles a block."""
    leaves = [torch.randn(shape).to(torch.float16) for shape in ((260, 520), (264, 520))]
    with torch.no_grad(), bigkern.use_backend("cuda"):
        output = bigkern.linear_act(*leaves)
    wide = [leaf.double() for leaf in leaves]
    assert_within_policy(output, F.relu(F.linear(*wide)), F.relu(F.linear(*leaves)))


def check_long_attention():
    leaves = [torch.randn(1, 1, length, 128).to(torch.float16) for length in (130, 530, 530)]
    with torch.no_grad(), bigkern.use_backend("cuda"):
        output = bigkern.attention(*leaves)
    wide = [leaf.double() for leaf in leaves]
    assert_within_policy(output, F.scaled_dot_product_attention(*wide), F.scaled_dot_product_attention(*leaves))


# What each check runs on.
ARCHITECTURES = {check_wide_linear: 90, check_long_attention: 90}


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    check: Callable
    kind: str = "address"


MUTATIONS = [
    Mutation("a lane's values left out of a reduction", "rows.cuh",
             "min_of(team_size, kWarp) / 2; distance > 0", "min_of(team_size, kWarp) / 2; distance > 1", check_quantize),
    Mutation("no barrier before partial results are read", "rows.cuh",
             "scratch[threadIdx.x / kWarp] = value;\n  __syncthreads();", "scratch[threadIdx.x / kWarp] = value;", check_cross_entropy),
    Mutation("copies read before they have come", "rows.cuh",
             "cp_async_wait<0>();", "cp_async_wait<1>();", check_quantize),
    Mutation("a maximum that moves without the sum", "cross_entropy.cuh",
             "sum.exp_sum *= exponential(sum.maximum - highest);", "", check_cross_entropy),
    Mutation("a tile overwritten while it is read", "gemm_tile.cuh",
             "int next_stage = stage == 0 ? stages - 1 : stage - 1;", "int next_stage = stage;", check_linear_act),
    Mutation("one stage waited for too late", "gemm_tile.cuh",
             "cp_async_wait<stages - 2>();", "cp_async_wait<stages - 1>();", check_linear_act),
    Mutation("16 bytes read where fewer are left", "gemm_tile.cuh",
             "inside ? source : operand.pointer,\n                  inside * int(sizeof(T)));", "source);", check_linear_act),
    Mutation("one row stored too many", "gemm_epilogue.cuh",
             "int row = index / cols, col = index % cols;\n      if (first_row + row >= epilogue.M || first_col + col >= epilogue.N) continue;",
             "int row = index / cols, col = index % cols;\n      if (first_row + row > epilogue.M || first_col + col >= epilogue.N) continue;", check_linear_act),
    Mutation("halves of a fragment exchanged", "gemm_tile.cuh",
             "2 * step + lane / 8 % 2));", "2 * step + (lane / 8 + 1) % 2));", check_int8_linear),
    Mutation("one row's scale taken for the next", "int8_epilogue.cuh",
             "input_scale[row]", "input_scale[row + 1]", check_int8_linear),
    Mutation("a team's sums left out of a gradient", "norm_backward.cuh",
             "other < teams;", "other < teams - 1;", check_layer_norm),
    Mutation("slots of teams overlap", "norm_backward.cuh",
             "slots + team.index * slot_bytes;", "slots + team.index * row_bytes;", check_layer_norm),
    Mutation("no barrier before the sums of other teams are read", "norm_backward.cuh",
             "__syncthreads();\n  for (int column = threadIdx.x;", "for (int column = threadIdx.x;", check_layer_norm, "race"),
    Mutation("the mask of the next four columns", "norm.cuh",
             "column / 4 + quad", "column / 4 + quad + 1", check_add_layer_norm),
    Mutation("the last elements of a tensor left out", "multi_tensor.cuh",
             "i = vectors_end + threadIdx.x; i < end;", "i = vectors_end + threadIdx.x; i < end - 1;", check_adam),
    Mutation("the state of another tensor", "multi_tensor.cuh",
             "addresses[row * tensors + tensor]", "addresses[row * tensors + (row > kMaster ? 0 : tensor)]", check_adam),
    Mutation("no barrier between a tile and the next load", "attention.cu",
             "__syncthreads();  // this tile has come, and every warp is done with the stage that the next load overwrites",
             "", check_attention),
    Mutation("a sum that does not follow the maximum", "attention.cu",
             "row_sum[m][half] * rescale + sum", "row_sum[m][half] + sum", check_attention),
    Mutation("the diagonal one key too far", "attention_common.cuh",
             "key > query", "key > query + 1", check_attention),
    Mutation("stages filled before they are empty", "warpgroup_tile.cuh",
             "mbarrier_wait(&barriers.empty[place.stage], place.parity ^ 1);", "", check_wide_linear),
    Mutation("a stage handed back before its products are done", "warpgroup_tile.cuh",
             "if (previous >= 0) release(barriers, previous);\n      previous = place.stage;",
             "release(barriers, place.stage);", check_wide_linear),
    Mutation("an operand announced too short", "warpgroup_tile.cuh",
             "mbarrier_arrive_expect(full, kStageBytes);", "mbarrier_arrive_expect(full, kBytesA);", check_wide_linear),
    Mutation("outputs not fenced from the copy that reads them", "attention_warpgroup_common.cuh",
             "async_proxy_fence();\n", "", check_long_attention, "race"),
    Mutation("keys read before they have come", "attention_warpgroup.cu",
             "if (tile > 0) mbarrier_wait(&barriers->key_full[keys.stage], keys.parity);", "", check_long_attention),
]  # fmt: skip


def emulate(check, folder=KERNELS, kind="address"):
    torch.manual_seed(0)
    with use_machine(Emulator(ARCHITECTURES.get(check, 80), kind=kind, folder=folder)):
        check()


@pytest.mark.parametrize(
    ("check", "kind"),
    dict.fromkeys((mutation.check, mutation.kind) for mutation in MUTATIONS),
    ids=lambda c: getattr(c, "__name__", c),
)
def test_sources_as_they_are_pass(check, kind):
    emulate(check, kind=kind)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what.replace(" ", "_"))
def test_a_broken_kernel_is_found(mutation, tmp_path):
    folder = tmp_path / "cuda"
    shutil.copytree(KERNELS, folder)
    source = folder / mutation.file
    text = source.read_text()
    assert text.count(mutation.old) == 1, "the mutated line is no longer there"
    source.write_text(text.replace(mutation.old, mutation.new))
    with pytest.raises((EmulatorError, AssertionError)):
        emulate(mutation.check, folder, mutation.kind)
