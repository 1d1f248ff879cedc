import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import bigkern
import bigkern.nn
from bigkern.ops.linear_act import ACTIVATIONS
from bigkern.ops.weight_only_linear import pack_int4, unpack_int4, weight_only_linear_forward
from bigkern.reference import weight_only_linear as reference
from tests.support import assert_within_policy, to_oracle
from tests.triton_aot import HOPPER_FIRST, SHARED_MEMORY_LIMIT, compile_cases

# M, N, K, groups
SHAPES = [(1, 1, 1, 1), (1, 5, 7, 1), (3, 33, 64, 4), (5, 6, 66, 3), (17, 31, 36, 1), (20, 9, 96, 3), (3, 4, 0, 1)]


def problem(M, N, K, groups, bits, zero_points=False, dtype=torch.float32, device="cpu", bias=True):
    """The arguments of weight_only_linear, every quantized number among them."""
    input = torch.randn(M, K)
    if bits == 8:
        qweight = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    else:
        qweight = torch.randint(0, 256, (N, (K + 1) // 2), dtype=torch.uint8)
    scale = (torch.rand(N, groups) + 0.1) / 2**bits
    zero_point = torch.randint(-100 if bits == 8 else 0, 16, (N, groups), dtype=torch.int32) if zero_points else None
    made = (
        input.to(dtype), qweight, scale.to(torch.float64 if dtype == torch.float64 else torch.float32), zero_point,
        torch.randn(N).to(dtype) if bias else None,
    )  # fmt: skip
    return [None if t is None else t.to(device) for t in made]


def composed(input, qweight, weight_scale, weight_zero_point, bias, activation="none"):
    weight = bigkern.dequantize_weight(qweight, weight_scale, weight_zero_point, input.shape[1], input.dtype)
    return ACTIVATIONS[activation](F.linear(input, weight, bias))


def oracle(arguments, activation="none"):
    return reference.weight_only_linear_forward(*(to_oracle(t) for t in arguments), activation)[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(place, shape, bits):
    for dtype in place.dtypes:
        for zero_points, activation in ((False, "none"), (True, "gelu")):
            arguments = problem(*shape, bits, zero_points, dtype, place.device, bias=zero_points)
            before = copy.deepcopy(arguments)
            with place.use():
                output = bigkern.weight_only_linear(*arguments, activation)
            assert output.dtype == dtype
            assert_within_policy(output, composed(*arguments, activation), oracle(arguments, activation))
            assert all(t is None or torch.equal(t, b) for t, b in zip(arguments, before, strict=True))


@given(
    M=st.integers(1, 40), N=st.integers(1, 40), half_group=st.integers(1, 40), groups=st.integers(1, 4),
    bits=st.sampled_from([8, 4]), zero_points=st.booleans(), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), activation=st.sampled_from(list(ACTIVATIONS)),
)  # fmt: skip
def test_any_size(place, M, N, half_group, groups, bits, zero_points, seed, dtype, activation):
    if place.slow:
        M, N, half_group = M % 18 + 1, N % 18 + 1, half_group % 12 + 1
    torch.manual_seed(seed)
    arguments = problem(M, N, 2 * half_group * groups, groups, bits, zero_points, dtype, place.device)
    with place.use():
        output = bigkern.weight_only_linear(*arguments, activation)
    assert_within_policy(output, composed(*arguments, activation), oracle(arguments, activation))


@pytest.mark.parametrize("bits", [8, 4])
def test_more_weights_than_one_block(bits):
    """Sizes at which the CPU kernel with many rows goes round its outer loop more than once."""
    for dtype in (torch.float32, torch.bfloat16):
        arguments = problem(18, 700, 4096, 32, bits, True, dtype)
        output = bigkern.weight_only_linear(*arguments, "relu")
        assert_within_policy(output, composed(*arguments, "relu"), oracle(arguments, "relu"))


def test_strides_leading_dimensions_and_empty_outputs(place):
    for M in (2, 20):
        input, *weights, bias = problem(M, 9, 12, 3, 4, True, device=place.device)
        with place.use():
            expected = bigkern.weight_only_linear(input, *weights, bias)
            turned = bigkern.weight_only_linear(
                input.t().contiguous().t(),
                *(w.t().contiguous().t() for w in weights),
                torch.stack([bias, bias], 1)[:, 0],
            )
            torch.testing.assert_close(turned, expected)
            folded = bigkern.weight_only_linear(input.view(2, M // 2, 12), *weights, bias)
            torch.testing.assert_close(folded, expected.view(2, M // 2, 9))
            assert torch.equal(bigkern.weight_only_linear(input[:0], *weights, bias), expected[:0])
            row = bigkern.weight_only_linear(input[0], *weights, bias)
            torch.testing.assert_close(row, expected[0])
            none = bigkern.weight_only_linear(input, *(w[:0] for w in weights), bias[:0])
            assert none.shape == (M, 0)


def test_non_finite_values_show(place):
    arguments = problem(3, 8, 20, 1, 8, device=place.device)
    arguments[0][1, 3] = float("nan")
    arguments[2][5] = float("nan")
    with place.use():
        output = bigkern.weight_only_linear(*arguments)
    assert output[1].isnan().all()
    assert output[:, 5].isnan().all()
    assert output.isnan().sum() == 8 + 3 - 1


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_match_oracle(place, activation):
    for dtype in place.dtypes:
        for bits in (8, 4):
            input, *weights, bias = problem(5, 9, 24, 2, bits, True, dtype, place.device)
            input.requires_grad_()
            bias.requires_grad_()
            grad_output = torch.randn(5, 9).to(place.device, dtype)
            with place.use():
                grads = torch.autograd.grad(
                    bigkern.weight_only_linear(input, *weights, bias, activation), (input, bias), grad_output
                )
            theirs = torch.autograd.grad(composed(input, *weights, bias, activation), (input, bias), grad_output)
            arrays = [to_oracle(t) for t in (input, *weights, bias)]
            kept = "none" if activation in ("gelu", "gelu_tanh", "silu") else activation
            saved = reference.weight_only_linear_forward(*arrays, kept)[0]
            expected = reference.weight_only_linear_backward(to_oracle(grad_output), *arrays[:-1], saved, activation)
            for ours, their, right in zip(grads, theirs, expected, strict=True):
                assert_within_policy(ours, their, right)


@pytest.mark.parametrize("bits", [8, 4])
def test_derivatives_by_differences(bits):
    input, *weights, bias = problem(3, 4, 6, 3, bits, True, torch.float64)
    inputs = input.requires_grad_(), bias.requires_grad_()
    for activation in ("none", "sigmoid", "silu"):

        def call(input, bias, activation=activation):
            with bigkern.use_backend("cpu"):
                return bigkern.weight_only_linear(input, *weights, bias, activation)

        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


# ---- PyTorch's machinery ---------------------------------------------------------------------------------------------


def test_registration_is_complete():
    for bits in (8, 4):
        input, *weights, bias = problem(3, 4, 6, 3, bits, True)
        opcheck(weight_only_linear_forward.op, (input.requires_grad_(), *weights, bias, "gelu"))


def test_compiles_with_dynamic_shapes():
    compiled = torch.compile(lambda *args: bigkern.weight_only_linear(*args, "silu"), fullgraph=True, dynamic=True)
    for M in (3, 20):
        arguments = problem(M, 7, 12, 2, 4)
        torch.testing.assert_close(compiled(*arguments), bigkern.weight_only_linear(*arguments, "silu"))


def test_autocast_lowers_input_and_bias_but_not_the_scale():
    arguments = problem(3, 7, 12, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = bigkern.weight_only_linear(*arguments)
    lowered = [arguments[0].bfloat16(), *arguments[1:4], arguments[4].bfloat16()]
    assert torch.equal(output, bigkern.weight_only_linear(*lowered))


ARGUMENTS = dict(zip(("input", "qweight", "weight_scale", "weight_zero_point", "bias"), problem(2, 4, 12, 2, 4, True)))  # noqa: B905


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "unknown activation 'swish'"),
        ({"input": torch.ones(2, 12, dtype=torch.int64)}, TypeError, "input must be floating, got torch.int64"),
        ({"input": torch.ones(())}, ValueError, "got a tensor without dimensions"),
        ({"input": torch.ones(2, 14)}, ValueError, r"needs a qweight of \[out_features, 7\]"),
        ({"qweight": torch.ones(4, 6)}, TypeError, "qweight must be int8, or uint8"),
        ({"qweight": torch.ones(4, 6, dtype=torch.int8)}, ValueError, r"needs a qweight of \[out_features, 12\]"),
        ({"weight_scale": torch.ones(4)}, ValueError, r"weight_scale must be \[4, groups\], got \(4,\)"),
        ({"weight_scale": torch.ones(4, 2, dtype=torch.int32)}, TypeError, "weight_scale must be floating"),
        ({"weight_scale": torch.ones(4, 5)}, ValueError, "5 groups do not divide in_features, 12"),
        ({"weight_scale": torch.ones(4, 4)}, ValueError, "must have an even size, got 3"),
        ({"weight_scale": torch.ones(4, 2, requires_grad=True)}, ValueError, "weight_scale asks for a gradient"),
        ({"weight_zero_point": torch.ones(4, 2)}, TypeError, "weight_zero_point must be int32, got torch.float32"),
        ({"weight_zero_point": torch.ones(4, 1, dtype=torch.int32)}, ValueError, "weight_zero_point has shape"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have shape \(4,\), got \(3,\)"),
        ({"bias": torch.ones(4).half()}, TypeError, "bias has dtype torch.float16, input has torch.float32"),
        ({"bias": torch.ones(4, device="meta")}, ValueError, "bias is on meta, input on cpu"),
    ],
)
def test_errors_say_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=f"weight_only_linear: .*{message}"):
        bigkern.weight_only_linear(**{**ARGUMENTS, **changes})


# ---- quantized weights -----------------------------------------------------------------------------------------------


@given(N=st.integers(1, 5), K=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_is_undone_by_unpacking(N, K, seed):
    values = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(values)
    assert packed.shape == (N, (K + 1) // 2)
    assert torch.equal(unpack_int4(packed, K), values)
    assert np.array_equal(reference.unpack_int4(packed.numpy(), K), values.numpy())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_weights_are_off_by_half_a_step_at_most(bits, symmetric):
    weight = torch.randn(7, 48) + 0.5
    weight[2, 16:32] = 0
    for group_size in (None, 16):
        quantized = bigkern.quantize_weight(weight, bits, group_size, symmetric)
        assert (quantized[2] is None) == symmetric
        back = bigkern.dequantize_weight(*quantized)
        steps = quantized[1].repeat_interleave(48 // quantized[1].shape[1], dim=1)
        # A zero point that is rounded moves every value of its group by up to half a step more.
        assert ((back - weight).abs() <= steps * (0.5001 if symmetric else 1.0001)).all()
    assert (back[2, 16:32] == 0).all()
    levels = torch.unique(bigkern.quantize_weight(torch.linspace(-1, 1, 1000)[None], 4, None, symmetric)[0])
    assert len(levels) > 14


def test_quantize_weight_shows_non_finite_groups_and_refuses_what_it_cannot_do():
    weight = torch.ones(2, 8)
    weight[1, 5] = float("inf")
    for bits in (8, 4):
        assert torch.equal(bigkern.dequantize_weight(*bigkern.quantize_weight(weight, bits, 4)).isnan()[1],
                           torch.arange(8) >= 4)  # fmt: skip
    for arguments, error, message in (
        ((weight.int(),), TypeError, "weight must be floating"),
        ((weight[0],), ValueError, "must be .out_features, in_features."),
        ((weight, 5), ValueError, "bits must be 4 or 8, got 5"),
        ((weight, 4, 3), ValueError, "group_size 3 does not divide in_features, 8"),
        ((weight, 4, 1), ValueError, "must have an even size, got 1"),
    ):
        with pytest.raises(error, match=f"quantize_weight: .*{message}"):
            bigkern.quantize_weight(*arguments)


# ---- modules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_module_stands_in_for_its_layer_and_survives_saving_and_casting(bits):
    linear = torch.nn.Linear(32, 6)
    layer = bigkern.nn.WeightOnlyLinear.from_float(linear, bits, 16, symmetric=bits == 4)
    input = torch.randn(5, 32)
    expected = F.linear(input, bigkern.dequantize_weight(*bigkern.quantize_weight(linear.weight, bits, 16, bits == 4)),
                        linear.bias)  # fmt: skip
    torch.testing.assert_close(layer(input), expected)
    assert (layer.weight - linear.weight).abs().max() < (0.003 if bits == 8 else 0.04)
    assert not list(layer.parameters())
    fresh = bigkern.nn.WeightOnlyLinear(32, 6, bits=bits, group_size=16, symmetric=bits == 4)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(input), layer(input))
    fresh.bfloat16()
    assert fresh.weight_scale.dtype == torch.float32
    assert fresh(input.bfloat16()).dtype == torch.bfloat16
    assert f"bits={bits}, group_size=16" in repr(layer)


def test_quantize_linears_makes_weight_only_layers_and_adapters_train_through_them():
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), bigkern.nn.LinearAct(16, 8, activation="gelu"))
    input = torch.randn(4, 32, requires_grad=True)
    expected = model(input)
    quantized = bigkern.nn.quantize_linears(copy.deepcopy(model), weight_only_bits=8, group_size=16)
    assert [type(layer).__name__ for layer in quantized] == ["WeightOnlyLinear"] * 2
    assert quantized[1].activation == "gelu"
    output = quantized(input)
    assert (output - expected).abs().max() < 0.02
    output.sum().backward()
    assert input.grad.abs().max() > 0


def test_module_errors():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear, got Conv2d"):
        bigkern.nn.WeightOnlyLinear.from_float(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        bigkern.nn.WeightOnlyLinear(4, 4, bits=3)
    with pytest.raises(ValueError, match="group_size 3 does not divide in_features, 4"):
        bigkern.nn.WeightOnlyLinear(4, 4, group_size=3)
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        bigkern.nn.WeightOnlyLinear(4, 4, activation="swish")
    with pytest.raises(ValueError, match="group_size goes with weight_only_bits"):
        bigkern.nn.quantize_linears(torch.nn.Linear(4, 4), group_size=2)


# ---- compiled ahead --------------------------------------------------------------------------------------------------


def aot_cases():
    """{name: call of a launcher}; runs in the processes that triton_aot starts, where kernels/ is importable."""
    from kernels import weight_only_linear

    def case(M, N, K, bits, activation="none", zero_points=False):
        def tensor(*shape, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device="meta")

        qweight = tensor(N, K, dtype=torch.int8) if bits == 8 else tensor(N, (K + 1) // 2, dtype=torch.uint8)
        scale = tensor(N, max(K // 128, 1), dtype=torch.float32)
        zero_point = tensor(*scale.shape, dtype=torch.int32) if zero_points else None
        inputs = tensor(M, K), qweight, scale, zero_point, tensor(N), activation, tensor(M, N)
        return lambda: weight_only_linear.weight_only_linear_forward(*inputs)

    return {
        "int8": case(4096, 4096, 4096, 8, "gelu", True),
        "int4": case(4096, 4096, 4096, 4, "none", True),
        "int4 few rows": case(8, 4096, 4096, 4),
        "unit sizes": case(1, 1, 1, 4, "gelu", True),
    }


@pytest.mark.parametrize("arch", HOPPER_FIRST)
def test_compiles_ahead_with_matrix_instructions_and_without_spills(arch):
    cases = compile_cases(__file__)[arch]
    assert len(cases) == 4
    for case, reports in cases.items():
        (report,) = reports
        assert report["spills"] == 0, (case, report)
        assert report["shared_bytes"] <= SHARED_MEMORY_LIMIT[arch], (case, report)
        assert report["sass_matrix"], (case, report)
