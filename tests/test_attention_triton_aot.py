"""What attention compiles to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import ARCHITECTURES, SHARED_MEMORY_LIMIT, compile_cases

# A minute or two on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

FORWARD = "attention_forward_kernel"
KEY_VALUE = "attention_backward_key_value_kernel"
QUERY = "attention_backward_query_kernel"
MATRIX_SASS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import attention

    def tensor(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def both(head_dim, dtype, is_causal, window=(-1, -1), has_alibi=False):
        batch, heads, length = 4, 16, 4096
        query, key, value, grad_output = (tensor(batch, heads, length, head_dim, dtype=dtype) for _ in range(4))
        outputs = [tensor(batch, heads, length, head_dim, dtype=dtype) for _ in range(4)]
        lse = tensor(batch, heads, length, dtype=torch.float32)
        slopes = tensor(batch, heads, dtype=torch.float32) if has_alibi else None
        options = (None, 0.0, is_causal, head_dim**-0.5, slopes, *window)

        def call():
            attention.attention_forward(query, key, value, None, *options, outputs[0], lse)
            inputs = (grad_output, None, query, key, value, None, outputs[0], lse)
            no_mask_gradient = tensor(0, dtype=dtype)
            attention.attention_backward(*inputs, *options, False, *outputs[1:], no_mask_gradient)

        return call

    return {
        "bf16 128": both(128, torch.bfloat16, False),
        "bf16 128 causal": both(128, torch.bfloat16, True),
        "bf16 64 window, ALiBi": both(64, torch.bfloat16, False, (1000, 100), True),
        "fp16 64": both(64, torch.float16, False),
        "fp16 64 causal": both(64, torch.float16, True),
    }


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: {kernel: report}})"""
    cases = compile_cases(__file__)[request.param]
    return request.param, {case: {report["kernel"]: report for report in reports} for case, reports in cases.items()}


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 5
    for case, reports in cases.items():
        assert {FORWARD, KEY_VALUE, QUERY} <= set(reports)
        for report in reports.values():
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def matrix_opcodes(report):
    """{"HGMMA"} for ["HGMMA.64x256x16.F32.BF16"]"""
    return {opcode.split(".")[0] for opcode in report["sass_matrix"]}


@pytest.mark.parametrize("kernel", [FORWARD, KEY_VALUE, QUERY])
def test_products_use_the_matrix_unit_of_the_architecture(compiled, kernel):
    arch, cases = compiled
    for case, reports in cases.items():
        assert MATRIX_SASS[arch] in matrix_opcodes(reports[kernel]), (case, reports[kernel])


def test_queries_keys_and_values_are_read_16_bytes_at_a_time(compiled):
    for case, reports in compiled[1].items():
        assert reports[FORWARD]["load_bits"] == 128, (case, reports[FORWARD])
