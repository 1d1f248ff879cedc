"""What conv2d and conv_transpose2d compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

MATRIX_PTX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
PRODUCTS = ("conv2d_kernel", "conv2d_grad_weight_kernel")


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import conv2d, conv_transpose2d

    def image(*shape, dtype, channels_last):
        format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=format)

    def both(N, C, H, out_channels, kernel, stride, groups, dtype=torch.bfloat16, channels_last=True):
        padding = kernel // 2
        size = (H + 2 * padding - kernel) // stride + 1
        options = {"dtype": dtype, "channels_last": channels_last}
        input, grad_input = (image(N, C, H, H, **options) for _ in range(2))
        output, grad_output = (image(N, out_channels, size, size, **options) for _ in range(2))
        weight, grad_weight = (image(out_channels, C // groups, kernel, kernel, **options) for _ in range(2))
        bias, grad_bias = (torch.empty(out_channels, dtype=dtype, device="meta") for _ in range(2))
        numbers = (stride, stride, padding, padding, 1, 1, groups)

        def call():
            conv2d.conv2d_forward(input, weight, bias, *numbers, "relu", output)
            inputs = (grad_output, input, weight, *numbers, True, True, True)
            conv2d.conv2d_backward(*inputs, grad_input, grad_weight, grad_bias)

        return call

    def forward(N, C, H, out_channels, kernel, stride):
        options = {"dtype": torch.bfloat16, "channels_last": False}
        size, padding = H // stride, kernel // 2
        input, output = image(N, C, H, H, **options), image(N, out_channels, size, size, **options)
        weight = image(out_channels, C, kernel, kernel, **options)
        numbers = (stride, stride, padding, padding, 1, 1, 1)
        return lambda: conv2d.conv2d_forward(input, weight, None, *numbers, "none", output)

    def transposed(N, C, H, out_channels):
        options = {"dtype": torch.float16, "channels_last": False}
        input, output, weight = (
            image(*shape, **options) for shape in ((N, C, H, H), (N, out_channels, H, 2 * H), (C, out_channels, 3, 4))
        )
        numbers = (1, 2, 1, 1, 0, 0, 1, 1, 1)
        return lambda: conv_transpose2d.conv_transpose2d_forward(input, weight, None, *numbers, output)

    return {
        "3x3 bf16 channels_last": both(64, 128, 56, 128, 3, 1, 1),
        "3x3 fp32": both(8, 64, 56, 64, 3, 1, 1, torch.float32, False),
        "7x7 of 3 channels": forward(64, 3, 224, 64, 7, 2),
        "depthwise": both(64, 96, 56, 96, 3, 1, 96),
        "transposed 3x4 fp16": transposed(64, 128, 16, 64),
        "huge": forward(2**20, 64, 64, 64, 1, 1),
    }


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    assert len(cases) == 6
    for case, reports in cases.items():
        assert reports, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def test_products_use_the_matrix_unit_of_the_architecture(compiled):
    arch, cases = compiled
    for case in ("3x3 bf16 channels_last", "transposed 3x4 fp16"):
        products = [report for report in cases[case] if report["kernel"] in PRODUCTS]
        assert len(products) == (3 if case.startswith("3x3") else 2)
        for report in products:
            assert report["ptx_matrix"] == [MATRIX_PTX[arch]], (case, report)


def test_channels_that_lie_together_are_read_128_bits_at_a_time(compiled):
    reports = [report for report in compiled[1]["3x3 bf16 channels_last"] if report["kernel"] == "conv2d_kernel"]
    assert len(reports) == 2  # forward and grad_input
    for report in reports:
        assert report["load_bits"] == report["store_bits"] == 128, report


def test_fp32_products_do_not_round_to_tf32(compiled):
    products = [report for report in compiled[1]["3x3 fp32"] if report["kernel"] in PRODUCTS]
    assert len(products) == 3
    for report in products:
        assert report["sass_matrix"] == []
