"""What the optimizers' kernels compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import ARCHITECTURES, SHARED_MEMORY_LIMIT, compile_cases

# A minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import adagrad, adam, grad_norm, rmsprop, sgd

    def tensors(dtype, numels=(4096, 70_001)):
        return [torch.empty(numel, dtype=dtype, device="meta") for numel in numels]

    def frame(dtype, masters):
        state = torch.float32 if masters else dtype
        factor = torch.empty((), device="meta")
        return state, tensors(torch.float32) if masters else [], factor, factor

    def sgd_case(dtype, masters=False, nesterov=True):
        state, master_params, factor, found_inf = frame(dtype, masters)
        lists = tensors(dtype), tensors(dtype), tensors(state), master_params
        return lambda: sgd.sgd_step(*lists, factor, found_inf, 0.1, 0.9, 0.0, 0.1, nesterov, False, False, True)

    def adam_case(dtype, masters=False, amsgrad=False, step_device="cpu", step_dtype=torch.float32):
        state, master_params, factor, found_inf = frame(dtype, masters)
        steps = [torch.ones((), device=step_device, dtype=step_dtype) for _ in range(2)]
        found_inf = None if step_device == "cpu" else found_inf
        largest = tensors(state) if amsgrad else []
        lists = tensors(dtype), tensors(dtype), tensors(state), tensors(state), largest, steps, master_params
        return lambda: adam.adam_step(*lists, factor, found_inf, 0.1, 0.9, 0.999, 1e-8, 0.1, True, False, True)

    def rmsprop_case(dtype, masters=False):
        state, master_params, factor, _ = frame(dtype, masters)
        steps = [torch.ones(()) for _ in range(2)]
        lists = tensors(dtype), tensors(dtype), tensors(state), tensors(state), tensors(state), steps, master_params
        return lambda: rmsprop.rmsprop_step(*lists, factor, None, 0.1, 0.9, 1e-8, 0.1, 0.9, False, True)

    def adagrad_case(dtype, masters=False, step_device="cpu"):
        state, master_params, factor, _ = frame(dtype, masters)
        steps = [torch.ones((), device=step_device) for _ in range(2)]
        lists = tensors(dtype), tensors(dtype), tensors(state), steps, master_params
        return lambda: adagrad.adagrad_step(*lists, factor, None, 0.1, 0.1, 1e-8, 0.1, False, True)

    def norm_case(dtype, norm_type):
        norm, factor = torch.empty((), device="meta"), torch.empty((), device="meta")
        return lambda: grad_norm.grad_norm_forward(tensors(dtype), factor, norm_type, 1.0, norm, factor)

    return {
        "sgd": sgd_case(torch.float32),
        "sgd master": sgd_case(torch.bfloat16, masters=True),
        "adam": adam_case(torch.float32),
        "adam bf16": adam_case(torch.bfloat16),
        "adam everything": adam_case(torch.float16, True, True, "meta", torch.float64),
        "rmsprop": rmsprop_case(torch.bfloat16, masters=True),
        "adagrad": adagrad_case(torch.float32, step_device="meta"),
        "grad_norm": norm_case(torch.bfloat16, 2.0),
        "grad_norm largest": norm_case(torch.float32, float("inf")),
        "clip_grads": lambda: grad_norm.clip_grads_step(tensors(torch.bfloat16), torch.empty((), device="meta")),
    }


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_one_launch_updates_all_tensors(compiled):
    for case, reports in compiled[1].items():
        assert len(reports) == (2 if case.startswith("grad_norm") else 1), case


def test_no_kernel_spills_and_all_move_128_bits_at_a_time(compiled):
    arch, cases = compiled
    for case, reports in cases.items():
        report = reports[0]
        assert report["spills"] == 0, (case, report)
        assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)
        assert report["load_bits"] == 128, (case, report)
        # The norm of a block is one number.
        assert report["store_bits"] == (32 if case.startswith("grad_norm") else 128), (case, report)
