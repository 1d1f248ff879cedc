"""What the losses compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# Half a minute on two idle cores; the limit is for busy ones.
pytestmark = pytest.mark.timeout(900)

MATRIX_PTX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
MATRIX_KERNELS = ("linear_act_kernel", "add_product_kernel", "linear_cross_entropy_sums_kernel")
MATRIX_CASES = {"linear_cross_entropy": 1, "linear_cross_entropy smoothed": 1, "linear_cross_entropy gradients": 3}


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import binary_cross_entropy_with_logits, distillation_loss, linear_cross_entropy

    def tensor(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    def linear(N, K, C, gradients, reduction="mean", label_smoothing=0.0, weighted=False):
        target, weight = tensor(N, dtype=torch.int64), tensor(C) if weighted else None
        loss = tensor(*((N,) if reduction == "none" else ()), dtype=torch.float32)
        inputs = (tensor(N, K), tensor(C, K), tensor(C), target, weight, -100, reduction, label_smoothing)
        outputs = (loss, tensor(N, K), tensor(C, K), tensor(C))
        return lambda: linear_cross_entropy.linear_cross_entropy_forward(*inputs, *(gradients,) * 3, *outputs)

    def pointwise(N, M, weights):
        x, t, grad_input, grad_target, loss = (*(tensor(N, M) for _ in range(4)), tensor())
        rest = (*((tensor(M), tensor(N * M)) if weights else (None, None)), "mean")

        def call():
            binary_cross_entropy_with_logits.binary_cross_entropy_with_logits_forward(x, t, *rest, loss)
            saved = (loss, x, t, *rest, True)
            binary_cross_entropy_with_logits.binary_cross_entropy_with_logits_backward(*saved, grad_input, grad_target)

        return call

    def distillation(N, C, reduction):
        student, teacher, grad_student = (tensor(N, C) for _ in range(3))
        loss, statistics = tensor(*((N,) if reduction == "none" else ())), tensor(N, 4, dtype=torch.float32)

        def call():
            distillation_loss.distillation_loss_forward(student, teacher, 2.0, reduction, loss, statistics)
            saved = (loss, student, teacher, statistics, 2.0, reduction)
            distillation_loss.distillation_loss_backward(*saved, grad_student)

        return call

    return {
        "pointwise": pointwise(8192, 4096, False),
        "weighted pointwise": pointwise(8192, 4096, True),
        "unit sizes: pointwise": pointwise(1, 1, True),
        "distillation_loss": distillation(8192, 128256, "mean"),
        "unit sizes: distillation_loss": distillation(1, 1, "none"),
        "linear_cross_entropy": linear(8192, 4096, 128256, False),
        "linear_cross_entropy smoothed": linear(8192, 4096, 32000, False, "none", 0.1, True),
        "linear_cross_entropy gradients": linear(512, 4096, 128256, True),
        "unit sizes: linear_cross_entropy": linear(1, 1, 1, False, "sum", 0.1, True),
        "huge: linear_cross_entropy": linear(2**32, 64, 64, False),
    }


@pytest.fixture(scope="module", params=HOPPER_FIRST, ids=lambda arch: f"sm_{arch}")
def compiled(request):
    """(architecture, {case: [report of each launch]})"""
    return request.param, compile_cases(__file__)[request.param]


def test_no_kernel_spills_or_exceeds_shared_memory(compiled):
    arch, cases = compiled
    for case, reports in cases.items():
        assert reports, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


def test_products_use_the_matrix_unit_of_the_architecture(compiled):
    arch, cases = compiled
    for case, count in MATRIX_CASES.items():
        products = [report for report in cases[case] if report["kernel"] in MATRIX_KERNELS]
        assert len(products) == count, case
        for report in products:
            assert report["ptx_matrix"] == [MATRIX_PTX[arch]], (case, report)
            assert report["load_bits"] == 128, (case, report)


def test_memory_bound_kernels_move_128_bits_at_a_time(compiled):
    for case in ("pointwise", "distillation_loss"):
        for report in compiled[1][case]:
            assert report["load_bits"] >= 128, (case, report)
            if "backward" in report["kernel"]:
                assert report["store_bits"] >= 128, (case, report)
