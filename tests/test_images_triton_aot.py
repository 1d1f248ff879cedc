"""What batch_norm_act, group_norm and the pools compile to for GPUs that this machine does not have."""

import pytest

pytest.importorskip("triton")

import torch

from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

pytestmark = pytest.mark.timeout(900)


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import adaptive_avg_pool2d, avg_pool2d, batch_norm_act, group_norm, max_pool2d

    def tensor(*shape, dtype=torch.bfloat16, channels_last=False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)

    def wide(*shape):
        return tensor(*shape, dtype=torch.float32)

    def batch_norm(channels_last):
        x, y, residual, grad = (tensor(32, 256, 56, 56, channels_last=channels_last).flatten(2) for _ in range(4))
        weight, bias, grad_weight, grad_bias = (tensor(256) for _ in range(4))
        mean, var = wide(256), wide(256)

        def call():
            inputs = (x, weight, bias, residual, mean, var, True, 1e-5, "relu")
            batch_norm_act.batch_norm_act_forward(*inputs, y, mean, var)
            flags = (True, 1e-5, True, True, True, True)
            saved = (grad, x, weight, bias, mean, var, y, *flags)
            batch_norm_act.batch_norm_act_backward(*saved, x, grad_weight, grad_bias, residual)

        return call

    def group():
        x, y, grad = (tensor(16, 256, 3136) for _ in range(3))
        weight, bias, grad_weight, grad_bias = (tensor(256) for _ in range(4))
        mean, rstd = wide(16 * 32), wide(16 * 32)

        def call():
            group_norm.group_norm_forward(x, weight, bias, 32, 1e-5, y, mean, rstd)
            flags = (32, True, True, True)
            group_norm.group_norm_backward(grad, x, weight, bias, mean, rstd, *flags, y, grad_weight, grad_bias)

        return call

    def max_pool(channels_last):
        x, pooled = (tensor(32, 64, side, side, channels_last=channels_last) for side in (112, 56))
        indices = tensor(32, 64, 56, 56, dtype=torch.int32, channels_last=channels_last)
        window = (3, 3, 2, 2, 1, 1, 1, 1)

        def call():
            max_pool2d.max_pool2d_forward(x, *window, False, pooled, indices)
            max_pool2d.max_pool2d_backward(pooled, indices, 112, 112, *window, x)

        return call

    def average(channels_last):
        x, pooled = (tensor(32, 64, side, side, channels_last=channels_last) for side in (112, 56))
        one = tensor(32, 64, 1, 1, channels_last=channels_last)
        window = (2, 2, 2, 2, 0, 0, False, True, 0)

        def call():
            avg_pool2d.avg_pool2d_forward(x, *window, pooled)
            avg_pool2d.avg_pool2d_backward(pooled, 112, 112, *window, x)
            adaptive_avg_pool2d.adaptive_avg_pool2d_forward(x, 1, 1, one)
            adaptive_avg_pool2d.adaptive_avg_pool2d_backward(one, 112, 112, x)

        return call

    return {
        "batch_norm_act": batch_norm(False),
        "batch_norm_act channels_last": batch_norm(True),
        "group_norm": group(),
        "max_pool2d": max_pool(False),
        "max_pool2d channels_last": max_pool(True),
        "average pools": average(False),
        "average pools channels_last": average(True),
    }


@pytest.mark.parametrize("arch", HOPPER_FIRST)
def test_no_kernel_spills_or_exceeds_shared_memory(arch):
    cases = compile_cases(__file__)[arch]
    assert len(cases) == 7
    for case, reports in cases.items():
        assert len(reports) >= 2, case
        for report in reports:
            assert report["spills"] == 0, (case, report)
            assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)


@pytest.mark.parametrize("arch", HOPPER_FIRST)
def test_norms_move_128_bits_at_a_time(arch):
    for case in ("batch_norm_act", "batch_norm_act channels_last", "group_norm"):
        reports = compile_cases(__file__)[arch][case]
        assert max(report["load_bits"] for report in reports) == 128, case
        assert max(report["store_bits"] for report in reports) == 128, case
