"""What the embeddings, rotary_embedding and gated_act compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

# Whole rows are what these move; the others read indices, or columns of partial sums.
WIDE = {
    "embedding_kernel",
    "embedding_layer_norm_kernel",
    "gated_act_kernel",
    "gated_act_backward_kernel",
    "rotary_embedding_kernel",
}


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import embedding, embedding_bag, embedding_layer_norm, gated_act, rotary_embedding

    def tensor(*shape, dtype=torch.int64):
        return torch.empty(shape, dtype=dtype, device="meta")

    def rows(count, words, columns, dtype):
        ids, table, picked = tensor(count), tensor(words, columns, dtype=dtype), tensor(count, columns, dtype=dtype)

        def call():
            embedding.embedding_forward(ids, table, 0, False, picked)
            embedding.embedding_backward(picked, ids, words, 0, True, table)

        return call

    def bags(mode, columns, dtype):
        ids, offsets, sizes, table = tensor(800), tensor(40), tensor(40), tensor(1000, columns, dtype=dtype)
        output, samples = tensor(40, columns, dtype=dtype), tensor(800, dtype=dtype) if mode == "sum" else None
        winners = tensor(40, columns) if mode == "max" else tensor(0)

        def call():
            flags = (mode, -1, False, False)
            embedding_bag.embedding_bag_forward(ids, table, offsets, samples, *flags, output, sizes, winners)
            saved = (output, ids, table, offsets, samples, sizes, winners, *flags, True, samples is not None)
            embedding_bag.embedding_bag_backward(*saved, table, tensor(800, dtype=dtype))

        return call

    def bert(columns, dtype, dropout_p):
        ids, output = [tensor(4096) for _ in range(3)], tensor(4096, columns, dtype=dtype)
        tables = [tensor(size, columns, dtype=dtype) for size in (30522, 512, 2)]
        weight, bias = (tensor(columns, dtype=dtype) for _ in range(2))
        statistics = [tensor(4096, dtype=torch.float32) for _ in range(2)]
        lookups = [t for pair in zip(ids, tables, strict=True) for t in pair]
        state = tensor(2) if dropout_p else None

        def call():
            options = (weight, bias, state, -1, 1e-12, dropout_p)
            embedding_layer_norm.embedding_layer_norm_forward(*lookups, *options, output, *statistics)
            saved = (output, *lookups, weight, bias, *statistics, state, -1, dropout_p, True, True, True)
            embedding_layer_norm.embedding_layer_norm_backward(*saved, *tables, weight, bias)

        return call

    def rotary(head_dim, pairs, interleaved, dtype):
        input, output = (tensor(2, 8, 512, head_dim, dtype=dtype) for _ in range(2))
        tables = [tensor(1, 512, pairs, dtype=torch.float32) for _ in range(2)]
        return lambda: rotary_embedding.rotary_embedding_forward(input, *tables, None, 0, interleaved, output)

    def gates(columns, activation, packed, dtype):
        gate, up = (
            tensor(512, columns * (1 + packed), dtype=dtype),
            None if packed else tensor(512, columns, dtype=dtype),
        )
        output = tensor(512, columns, dtype=dtype)

        def call():
            gated_act.gated_act_forward(gate, up, activation, output)
            gated_act.gated_act_backward(output, gate, up, activation, gate, up)

        return call

    return {
        "embedding 4096 of 30522x768 bf16": rows(4096, 30522, 768, torch.bfloat16),
        "embedding 4096 of 1000x64 fp32": rows(4096, 1000, 64, torch.float32),
        "embedding_bag sum fp32": bags("sum", 128, torch.float32),
        "embedding_bag max bf16": bags("max", 64, torch.bfloat16),
        "embedding_layer_norm 1024 bf16 dropout": bert(1024, torch.bfloat16, 0.1),
        "embedding_layer_norm 768 fp32": bert(768, torch.float32, 0.0),
        "rotary_embedding 128 bf16": rotary(128, 64, False, torch.bfloat16),
        "rotary_embedding 128 bf16 interleaved": rotary(128, 64, True, torch.bfloat16),
        "swiglu 11008 bf16": gates(11008, "silu", True, torch.bfloat16),
        "geglu 8192 fp32": gates(8192, "gelu_tanh", False, torch.float32),
    }


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 10
    for case, reports in cases.items():
        assert reports, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def test_rows_are_moved_128_bits_at_a_time(compiled):
    seen = set()
    for case, reports in compiled[1].items():
        for report in reports:
            if report["kernel"] in WIDE:
                seen.add(report["kernel"])
                assert report["load_bits"] >= 128, (case, report)
                assert report["store_bits"] >= 128, (case, report)
    assert seen == WIDE
