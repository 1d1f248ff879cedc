"""What linear_act, int8_linear, cross_entropy and quantize compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import ARCHITECTURES, SHARED_MEMORY_LIMIT, compile_cases

# A minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

# The matrix unit of each architecture, as PTX and as machine code: fp16 and bf16, then int8.
MATRIX_PTX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
MATRIX_SASS = {
    torch.bfloat16: {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"},
    torch.int8: {80: "IMMA", 90: "IGMMA", 100: "UTCIMMA"},
}
MATRIX_CASES = {
    "linear_act gelu": torch.bfloat16,
    "linear_act none": torch.bfloat16,
    "linear_act backward": torch.bfloat16,
    "int8_linear gelu": torch.int8,
    "int8_linear none": torch.int8,
}
MATRIX_KERNELS = ("linear_act_kernel", "int8_linear_kernel")
# Kernels that read what other kernels of the same call have already reduced to almost nothing.
SMALL_KERNELS = ("cross_entropy_reduce_kernel",)
STREAMING_CASES = (
    "cross_entropy wide",
    "cross_entropy smoothed",
    "cross_entropy probabilities",
    "cross_entropy image",
    "quantize rows",
    "quantize tensor",
    "quantize columns",
    "dequantize rows",
)


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import cross_entropy, int8_linear, linear_act, quantize

    def tensor(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    def linear(M, N, K, activation, dtype=torch.bfloat16):
        saves = activation == "gelu"
        inputs = [tensor(*shape, dtype=dtype) for shape in ((M, K), (N, K), (N,), (M, N), (M, N))]
        input, weight, bias, output, pre_activation = inputs
        return lambda: linear_act.linear_act_forward(input, weight, bias, activation, saves, output, pre_activation)

    def linear_backward(M, N, K):
        outputs = tensor(M, K), tensor(N, K), tensor(N)
        inputs = tensor(M, N), tensor(M, K), tensor(N, K), tensor(M, N)
        return lambda: linear_act.linear_act_backward(*inputs, "gelu", True, True, True, *outputs)

    def int8(M, N, K, activation):
        inputs = tensor(M, K), tensor(N, K, dtype=torch.int8), tensor(N, dtype=torch.float32), tensor(N)
        outputs = tensor(M, N), tensor(M, N)
        return lambda: int8_linear.int8_linear_forward(*inputs, activation, activation == "gelu", *outputs)

    def cross_entropy_both(N, C, D, reduction="mean", label_smoothing=0.0, weighted=False, probabilities=False):
        input, grad_input, grad_target = (tensor(N, C, D) for _ in range(3))
        target = tensor(N, C, D) if probabilities else tensor(N, D, dtype=torch.int64)
        weight = tensor(C) if weighted else None
        loss = tensor(N, D) if reduction == "none" else tensor()
        lse, total_weight = tensor(N, D, dtype=torch.float32), tensor(dtype=torch.float32)
        options = (-100, reduction, label_smoothing)

        def call():
            cross_entropy.cross_entropy_forward(input, target, weight, *options, loss, lse, total_weight)
            saved = (loss, input, target, weight, lse, total_weight, *options)
            cross_entropy.cross_entropy_backward(*saved, probabilities, grad_input, grad_target)

        return call

    def quantized(outer, groups, inner, symmetric=True):
        outputs = tensor(outer, groups, inner, dtype=torch.int8), tensor(groups, dtype=torch.float32)
        zero_point = tensor(groups, dtype=torch.int32)
        return lambda: quantize.quantize_forward(tensor(outer, groups, inner), symmetric, *outputs, zero_point)

    def dequantized(outer, groups, inner):
        inputs = tensor(outer, groups, inner, dtype=torch.int8), tensor(groups, dtype=torch.float32)
        zero_point = tensor(groups, dtype=torch.int32)
        return lambda: quantize.dequantize_forward(*inputs, zero_point, tensor(outer, groups, inner))

    rows = 2**32  # offsets leave 32 bits
    return {
        "linear_act gelu": linear(4096, 4096, 4096, "gelu"),
        "linear_act none": linear(4096, 4096, 4096, "none"),
        "linear_act backward": linear_backward(8192, 2048, 2048),
        "linear_act few rows": linear(8, 4096, 4096, "relu"),
        "linear_act fp32": linear(2048, 2048, 2048, "gelu", torch.float32),
        "int8_linear gelu": int8(4096, 4096, 4096, "gelu"),
        "int8_linear none": int8(4096, 4096, 4096, "none"),
        "int8_linear few rows": int8(8, 4096, 4096, "relu"),
        "cross_entropy wide": cross_entropy_both(8192, 128256, 1),
        "cross_entropy smoothed": cross_entropy_both(8192, 32000, 1, label_smoothing=0.1, weighted=True),
        "cross_entropy probabilities": cross_entropy_both(8192, 1024, 1, "none", 0.1, True, True),
        "cross_entropy image": cross_entropy_both(8, 32, 65536),
        "quantize rows": quantized(1, 4096, 8192),
        "quantize tensor": quantized(1, 1, 2**26, symmetric=False),
        "quantize columns": quantized(8192, 4096, 1),
        "dequantize rows": dequantized(1, 4096, 8192),
        "unit sizes: linear_act": linear(1, 1, 1, "tanh"),
        "unit sizes: linear_act backward": linear_backward(1, 1, 1),
        "unit sizes: int8_linear": int8(1, 1, 1, "gelu"),
        "unit sizes: cross_entropy": cross_entropy_both(1, 1, 1, "none", 0.1, True, True),
        "unit sizes: quantize": quantized(2, 1, 1, symmetric=False),
        "huge: linear_act": linear(rows, 64, 64, "silu"),
        "huge: linear_act backward": linear_backward(rows, 64, 64),
        "huge: cross_entropy": cross_entropy_both(rows, 10, 1, label_smoothing=0.1),
        "huge: quantize": quantized(1, 1, rows),
    }


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 25
    for case, reports in cases.items():
        assert reports, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def matrix_opcodes(report):
    """{"HGMMA"} for ["HGMMA.64x256x16.F32.BF16"]"""
    return {opcode.split(".")[0] for opcode in report["sass_matrix"]}


def test_matrix_products_use_the_matrix_unit_of_the_architecture(compiled):
    arch, cases = compiled
    for case, dtype in MATRIX_CASES.items():
        products = [report for report in cases[case] if report["kernel"] in MATRIX_KERNELS]
        assert len(products) == (2 if case.endswith("backward") else 1)
        for report in products:
            assert report["ptx_matrix"] == [MATRIX_PTX[arch]], (case, report)
            assert matrix_opcodes(report) == {MATRIX_SASS[dtype][arch]}, (case, report)
            assert report["load_bits"] == report["store_bits"] == 128, (case, report)


def test_products_of_few_rows_use_the_warp_wide_matrix_instructions(compiled):
    # wgmma and tcgen05 take 64 rows or more; 8 rows are bound by reading the weight.
    for case, instruction in (("linear_act few rows", "HMMA"), ("int8_linear few rows", "IMMA")):
        report = compiled[1][case][-1]
        assert report["ptx_matrix"] == ["mma.sync"]
        assert matrix_opcodes(report) == {instruction}
        assert report["load_bits"] == 128


def test_fp32_products_do_not_round_to_tf32(compiled):
    (report,) = compiled[1]["linear_act fp32"]
    assert report["sass_matrix"] == []


def test_memory_bound_kernels_move_128_bits_at_a_time(compiled):
    for case in STREAMING_CASES:
        for report in compiled[1][case]:
            if report["kernel"] in SMALL_KERNELS:
                continue
            assert report["load_bits"] >= 128, (case, report)
            # The forward of cross_entropy and the first stage of quantize store a number or two per program.
            if report["kernel"] not in ("cross_entropy_forward_kernel", "group_range_kernel"):
                assert report["store_bits"] >= 128, (case, report)
