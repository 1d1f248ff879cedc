"""attention's CUDA kernels where they have borders of their own: tiles, padded dimensions, 16-byte rows, sections."""

import pytest
import torch

from bigkern.cuda import attention as launchers
from bigkern.cuda import attention_common
from bigkern.cuda.machine import SHARED_MEMORY, Recorder, use_machine
from tests.attention_cases import Case, oracle, torch_answer
from tests.cuda_emulator import machine as cuda_emulator
from tests.support import EMULATOR, Place
from tests.test_attention import check, run

ON_GPU = torch.cuda.is_available()
PLACE = Place("cuda", "cuda") if ON_GPU else EMULATOR
pytestmark = pytest.mark.skipif(not ON_GPU and cuda_emulator.unavailable() is not None, reason="needs a C++ compiler")


def check_case(case, dtype):
    inputs = case.inputs(dtype, PLACE.device)
    grad_output = torch.randn((*inputs[0].shape[:3], inputs[2].shape[3]), device=PLACE.device).to(dtype)
    grad_lse = torch.randn(inputs[0].shape[:3], device=PLACE.device)
    actual = run(PLACE, inputs, grad_output, grad_lse, is_causal=case.is_causal, scale=case.scale, enable_gqa=case.gqa)
    arguments = (inputs, grad_output, grad_lse, case.is_causal, case.scale_or_default())
    check(actual, oracle(*arguments), torch_answer(*arguments), dtype, f"{case} {dtype}")


# Each padded dimension from its lower border to its upper one, and lengths around whole tiles of 32, 64 and 128.
BORDERS = [
    (Case(1, 1, None, 64, 64, 65, 64, is_causal=True), torch.float16),
    (Case(1, 1, None, 33, 65, 128, 63, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 129, 128, 64, 129, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 65, 31, 192, 128), torch.float16),
    (Case(1, 2, 1, 127, 129, 72, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 17, 33, 193, 256, is_causal=True), torch.bfloat16),
    (Case(1, 1, None, 33, 17, 255), torch.float32),
    (Case(1, 1, None, 65, 97, 66, 130, is_causal=True), torch.float32),
]


@pytest.mark.parametrize(("case", "dtype"), BORDERS, ids=str)
def test_borders_of_tiles_and_padded_dimensions(case, dtype):
    check_case(case, dtype)


@pytest.mark.parametrize("heads_at_once", [1, 2])
def test_sections_of_heads_cover_every_head_once(monkeypatch, heads_at_once):
    key = value = torch.empty(1, 3, 40, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(attention_common, "SECTION_BYTES", heads_at_once * 40 * (16 + 16) * 2)
    assert attention_common.heads_per_section(key, value) == heads_at_once
    check_case(Case(1, 6, 3, 130, 40, 16, is_causal=True), torch.bfloat16)


def misaligned(tensor):
    """The same values, rows starting at odd addresses."""
    return torch.nn.functional.pad(tensor, (1, 2), value=99)[..., 1:-2]


def all_results(query, key, value, grad_output):
    tensors = [tensor.requires_grad_() for tensor in (query, key, value)]
    output, lse, *grads, _ = run(PLACE, (*tensors, None), grad_output, None, enable_gqa=True, is_causal=True)
    return output, lse, *grads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_slow_loads_give_the_bits_of_fast_ones(dtype):
    torch.manual_seed(2)
    shapes = ((1, 4, 35, 40), (1, 2, 67, 40), (1, 2, 67, 24), (1, 4, 35, 24))
    tensors = [torch.randn(shape, device=PLACE.device).to(dtype) for shape in shapes]
    right = all_results(*(tensor.clone() for tensor in tensors))
    for which in range(4):
        views = [misaligned(tensor) if i == which else tensor.clone() for i, tensor in enumerate(tensors)]
        assert [attention_common.is_aligned(view) for view in views] == [i != which for i in range(4)]
        for ours, expected in zip(all_results(*views), right, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("arch", sorted(SHARED_MEMORY))
def test_every_tile_fits_into_shared_memory(arch):
    for dtype in (torch.float32, torch.float16):
        for head_dim in (64, 128, 192, 256):
            for value_dim in (head_dim, 64):
                query, key = (torch.empty(2, 4, 300, head_dim, dtype=dtype, device="meta") for _ in range(2))
                value, output, grad_output = (
                    torch.empty(2, 4, 300, value_dim, dtype=dtype, device="meta") for _ in range(3)
                )
                lse = torch.empty(2, 4, 300, device="meta")
                options = (None, 0.0, False, 0.5, None, -1, -1)
                with use_machine(Recorder(arch)) as recorder:
                    launchers.attention_forward(query, key, value, None, *options, output, lse)
                    inputs = (grad_output, None, query, key, value, None, output, lse)
                    launchers.attention_backward(*inputs, *options, False, query, key, value, None)
                assert len(recorder.launches) == 4
                for launch in recorder.launches:
                    assert launch.shared_bytes <= recorder.shared_memory, launch
