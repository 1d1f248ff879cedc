"""What lstm, gru and rnn compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import gru, lstm, rnn

    def tensor(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def layer(module, gates, batch, hidden, dtype, with_lengths, length=1):
        lengths = tensor(batch, dtype=torch.int64) if with_lengths else None
        wide = torch.float32
        weight, bias = tensor(gates * hidden, hidden, dtype=dtype), tensor(gates * hidden, dtype=dtype)
        sequences = [tensor(length, batch, hidden, dtype=dtype) for _ in range(2)]
        states = [tensor(batch, hidden, dtype=dtype) for _ in range(4)]
        gates_input = tensor(length, batch, gates * hidden, dtype=dtype)
        cells = tensor(length, batch, hidden, dtype=wide)
        saved = tensor(length, batch, 4 * hidden, dtype=dtype)
        output, grad_output = sequences
        h0, c0, h_n, c_n = states

        def call():
            inputs = (gates_input, weight, bias, h0)
            if module == "lstm":
                lstm.lstm_forward(*inputs, c0, lengths, False, True, output, h_n, c_n, saved, cells)
                grads = (grad_output, h_n, c_n, saved, cells, weight, c0, lengths, False)
                lstm.lstm_backward(*grads, gates_input, h0, c0)
            elif module == "gru":
                gru.gru_forward(*inputs, lengths, False, True, output, h_n, saved)
                grads = (grad_output, h_n, saved, output, weight, h0, lengths, True)
                gru.gru_backward(*grads, gates_input, gates_input, h0)
            else:
                rnn.rnn_forward(*inputs, lengths, True, module, output, h_n)
                rnn.rnn_backward(grad_output, h_n, output, weight, lengths, True, module, gates_input, h0)

        return call

    return {
        "lstm 64x1024 bf16": layer("lstm", 4, 64, 1024, torch.bfloat16, True, length=2),
        "lstm 1x256 fp32": layer("lstm", 4, 1, 256, torch.float32, False),
        "gru 64x1024 bf16": layer("gru", 3, 64, 1024, torch.bfloat16, True, length=2),
        "gru 3x77 fp16": layer("gru", 3, 3, 77, torch.float16, False),
        "tanh 64x512 fp32": layer("tanh", 1, 64, 512, torch.float32, True, length=2),
        "relu 8x512 bf16": layer("relu", 1, 8, 512, torch.bfloat16, False),
    }


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 6
    for case, reports in cases.items():
        assert len(reports) >= 3, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def test_half_precision_products_use_matrix_instructions(compiled):
    for case, reports in compiled[1].items():
        for report in reports:
            # The last time's gradient has no product yet: what comes first in the backward.
            is_first = report["kernel"].endswith("backward_kernel") and not report["ptx_matrix"]
            if "fp32" not in case and not is_first:
                assert report["ptx_matrix"], (case, report)


def test_products_are_in_every_backward(compiled):
    for case, reports in compiled[1].items():
        if case.endswith("bf16") and "64x" in case:
            backward = [bool(report["ptx_matrix"]) for report in reports if "backward" in report["kernel"]]
            assert backward == [False, True], (case, backward)
