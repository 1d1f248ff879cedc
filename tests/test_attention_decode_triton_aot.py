"""What attention_decode compiles to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

pytestmark = pytest.mark.timeout(900)

PART = "attention_decode_part_kernel"


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import attention_decode

    def tensor(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    def call(block_size, is_int8):
        batch, heads, kv_heads, max_len, head_dim = 8, 32, 8, 4096, 128
        blocks = (batch, max_len) if block_size is None else (batch * max_len // block_size, block_size)
        dtype = torch.int8 if is_int8 else torch.bfloat16
        caches = [tensor(blocks[0], kv_heads, blocks[1], head_dim, dtype=dtype) for _ in range(2)]
        scales = [tensor(blocks[0], kv_heads, blocks[1], dtype=torch.float32) for _ in range(2)] if is_int8 else []
        table = tensor(batch, max_len // block_size, dtype=torch.int32) if block_size else None
        seqlens = tensor(batch, dtype=torch.int32)
        query, output = tensor(batch, heads, 1, head_dim), tensor(batch, heads, 1, head_dim)
        lse = tensor(batch, heads, 1, dtype=torch.float32)
        new = tensor(batch, kv_heads, 1, head_dim)

        def launch():
            attention_decode.cache_append_step(caches, scales, new, new, seqlens, table)
            options = (table, *(scales or (None, None)), None, 0.1, -1, 0)
            attention_decode.attention_decode_forward(query, *caches, seqlens, *options, output, lse)

        return launch

    return {"bf16": call(None, False), "int8, pages of 16": call(16, True)}


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory_and_products_use_the_matrix_unit(compiled):
    arch, cases = compiled
    assert {len(reports) for reports in cases.values()} == {4}
    for case, reports in cases.items():
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)
            # 16 rows are fewer than the matrix units of Hopper and Blackwell take at once: there it is mma, too.
            assert bool(report["sass_matrix"]) == (report["kernel"] == PART), (case, report)


def test_whole_caches_are_read_16_bytes_at_a_time(compiled):
    (report,) = (report for report in compiled[1]["bf16"] if report["kernel"] == PART)
    assert report["load_bits"] == 128, report
