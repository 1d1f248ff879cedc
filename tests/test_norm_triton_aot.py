"""What layer_norm, rms_norm and add_layer_norm compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

# What they read or write beside whole rows is almost nothing.
WITHOUT_WIDE_LOADS = ("norm_reduce_kernel",)
WITHOUT_WIDE_STORES = ("norm_reduce_kernel", "norm_backward_sums_kernel")


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import add_layer_norm, layer_norm, rms_norm

    def tensor(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def layer(rows, columns, dtype):
        input, grad_output, output, grad_input = (tensor(rows, columns, dtype=dtype) for _ in range(4))
        weight, bias, grad_weight, grad_bias = (tensor(columns, dtype=dtype) for _ in range(4))
        mean, rstd = (tensor(rows, dtype=torch.float32) for _ in range(2))

        def call():
            layer_norm.layer_norm_forward(input, weight, bias, 1e-5, output, mean, rstd)
            inputs = (grad_output, input, weight, bias, mean, rstd)
            layer_norm.layer_norm_backward(*inputs, True, True, True, grad_input, grad_weight, grad_bias)

        return call

    def rms(rows, columns, dtype):
        input, grad_output, output, grad_input = (tensor(rows, columns, dtype=dtype) for _ in range(4))
        weight, grad_weight = (tensor(columns, dtype=dtype) for _ in range(2))
        rstd = tensor(rows, dtype=torch.float32)

        def call():
            rms_norm.rms_norm_forward(input, weight, 1e-5, output, rstd)
            rms_norm.rms_norm_backward(grad_output, input, weight, rstd, True, True, grad_input, grad_weight)

        return call

    def add(rows, columns, dtype, dropout_p):
        input, residual, output, total = (tensor(rows, columns, dtype=dtype) for _ in range(4))
        grad_output, grad_sum, grad_input, grad_residual = (tensor(rows, columns, dtype=dtype) for _ in range(4))
        weight, bias, grad_weight, grad_bias = (tensor(columns, dtype=dtype) for _ in range(4))
        mean, rstd = (tensor(rows, dtype=torch.float32) for _ in range(2))
        rng_state = tensor(2, dtype=torch.int64) if dropout_p else None

        def call():
            inputs = (input, residual, weight, bias, rng_state, 1e-5, dropout_p, True)
            add_layer_norm.add_layer_norm_forward(*inputs, output, total, mean, rstd)
            saved = (grad_output, grad_sum, total, weight, bias, mean, rstd, rng_state, dropout_p, True, True, True)
            add_layer_norm.add_layer_norm_backward(*saved, grad_input, grad_residual, grad_weight, grad_bias)

        return call

    return {
        "add_layer_norm 4096x1024 bf16": add(4096, 1024, torch.bfloat16, 0.0),
        "add_layer_norm 4096x1024 bf16 dropout": add(4096, 1024, torch.bfloat16, 0.1),
        "add_layer_norm 4096x8192 fp32 dropout": add(4096, 8192, torch.float32, 0.1),
        "add_layer_norm 64x65536 bf16 dropout": add(64, 65536, torch.bfloat16, 0.1),
        "layer_norm 4096x1024 bf16": layer(4096, 1024, torch.bfloat16),
        "layer_norm 512x4096 fp32": layer(512, 4096, torch.float32),
        "layer_norm 4096x8192 bf16": layer(4096, 8192, torch.bfloat16),
        "layer_norm 64x65536 bf16": layer(64, 65536, torch.bfloat16),
        "rms_norm 4096x768 fp16": rms(4096, 768, torch.float16),
        "rms_norm 4096x8192 fp32": rms(4096, 8192, torch.float32),
        "rms_norm 64x65536 bf16": rms(64, 65536, torch.bfloat16),
        "unit sizes": layer(1, 1, torch.float32),
        "huge": layer(2**32, 64, torch.bfloat16),
    }


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 13
    for case, reports in cases.items():
        assert len(reports) >= 3, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def test_rows_are_moved_128_bits_at_a_time(compiled):
    for case, reports in compiled[1].items():
        if case == "unit sizes":
            continue
        for report in reports:
            if report["kernel"] not in WITHOUT_WIDE_LOADS:
                assert report["load_bits"] >= 128, (case, report)
            if report["kernel"] not in WITHOUT_WIDE_STORES:
                assert report["store_bits"] >= 128, (case, report)
