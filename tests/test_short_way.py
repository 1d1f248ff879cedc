"""The C++ functions that do a whole small call: they give what the kernels give, and leave alone what is not theirs."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

import bigkern
from bigkern.backends import cpu
from bigkern.registration import short_way
from tests.support import PLACES

CPU_PLACES = [place for place in PLACES if place.backend == "cpu"]
CPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def linear_arguments(dtype=torch.float32, shape=(5, 7), bias=True, activation="gelu"):
    drawn = torch.randn(3, shape[-1]).to(dtype), torch.randn(3).to(dtype) if bias else None
    return torch.randn(shape).to(dtype), *drawn, activation


def int8_arguments(dtype=torch.float32, shape=(5, 7), bias=True, activation="relu"):
    input, weight, bias, activation = linear_arguments(dtype, shape, bias, activation)
    return input, *bigkern.quantize(weight, axis=0)[:2], bias, activation


def loss_arguments(dtype=torch.float32, rows=6, classes=5, reduction="mean", label_smoothing=0.0):
    target = torch.randint(classes, (rows,))
    target[0] = -100
    return torch.randn(rows, classes).to(dtype), target, None, -100, reduction, label_smoothing


def attention_arguments(dtype=torch.float32, heads=(2, 2), len_q=5, is_causal=False, scale=None):
    shapes = (2, heads[0], len_q, 8), (2, heads[1], 9, 8), (2, heads[1], 9, 6)
    tensors = (torch.randn(shape).to(dtype) for shape in shapes)
    return *tensors, None, 0.0, is_causal, scale, heads[0] != heads[1]


def by_short_way(op, arguments, grad_enabled=False):
    limits = {"linear_act": (0,), "cross_entropy": (0, 0)}.get(op, ())
    return getattr(cpu.module(), op)(grad_enabled, *limits, *arguments)


PLAIN = {
    "linear_act": [
        {}, {"shape": (2, 3, 7), "bias": False, "activation": "none"}, {"shape": (40, 33), "activation": "relu"},
    ],
    "int8_linear": [{}, {"shape": (2, 3, 7), "bias": False}, {"shape": (40, 33), "activation": "silu"}],
    "cross_entropy": [{}, {"reduction": "none"}, {"rows": 40, "classes": 70, "reduction": "sum", "label_smoothing": 0.1}],
    "attention": [{}, {"heads": (4, 2), "scale": 0.3}, {"len_q": 70, "is_causal": True}],
}  # fmt: skip
ARGUMENTS = {
    "linear_act": linear_arguments,
    "int8_linear": int8_arguments,
    "cross_entropy": loss_arguments,
    "attention": attention_arguments,
}


@pytest.mark.parametrize("cpu_place", CPU_PLACES, ids=str)
@pytest.mark.parametrize("op", PLAIN)
def test_same_bits_as_the_kernel(op, cpu_place):
    for options in PLAIN[op]:
        for dtype in CPU_DTYPES:
            arguments = ARGUMENTS[op](dtype, **options)
            with cpu_place.use():
                expected = getattr(bigkern, op)(*arguments)
                output = by_short_way(op, arguments)
            if op == "linear_act" and dtype == torch.bfloat16:
                assert output is None
                continue
            assert output.dtype == expected.dtype
            assert output.stride() == expected.stride()
            assert torch.equal(output, expected)


def test_strided_inputs_and_parameters():
    input, weight, bias, _ = linear_arguments(shape=(6, 4, 7))
    weight = torch.nn.Parameter(weight)
    for view in (
        input[::2],
        input[:, ::2],
        input.transpose(0, 1),
        torch.randn(7, 6).t(),
        input[..., :1].expand(6, 4, 7),
    ):
        with torch.no_grad(), bigkern.use_backend("cpu"):
            expected = bigkern.linear_act(view, weight, bias)
        with torch.no_grad():
            assert torch.equal(bigkern.linear_act(view, weight, bias), expected)
    query = torch.randn(2, 5, 3, 8).transpose(1, 2)
    output = by_short_way("attention", (query, query, query, None, 0.0, False, None, False))
    assert torch.equal(output, bigkern.attention(*(query.contiguous(),) * 3))


def replaced(arguments, **changes):
    arguments = list(arguments)
    for position, value in changes.items():
        arguments[int(position.removeprefix("at"))] = value
    return arguments


class Special(torch.Tensor):
    pass


NEGATED = torch.complex(torch.randn(5, 7), torch.randn(5, 7)).conj().imag
NOT_TAKEN = {
    "linear_act": [
        {"at0": torch.randn(5, 7).as_subclass(Special)}, {"at0": NEGATED}, {"at0": torch.randn(7)}, {"at0": None},
        {"at0": torch.randn(0, 7)}, {"at0": torch.randn(5, 8)}, {"at0": torch.randn(5, 7).double()}, {"at1": [1.0]},
        {"at1": torch.randn(7)}, {"at2": torch.randn(4)}, {"at2": torch.randn(3).half()}, {"at3": "swish"}, {"at3": None},
        {"at0": torch.randn(5, 7, device="meta")}, {"at0": torch.randn(5, 7, dtype=torch.complex64)},
    ],
    "int8_linear": [
        {"at1": torch.randn(3, 7)}, {"at2": torch.rand(4)}, {"at2": torch.rand(3).double()}, {"at2": torch.tensor(0.1)},
    ],
    "cross_entropy": [
        {"at0": torch.randn(6, 5, 2)}, {"at0": torch.randn(5, 6).t()}, {"at1": torch.randn(6, 5)}, {"at2": torch.ones(5)},
        {"at1": torch.zeros(6, dtype=torch.uint8)}, {"at1": torch.zeros(5, dtype=torch.int64)}, {"at3": 0.5},
        {"at4": "median"}, {"at5": 1.5}, {"at5": "much"},
    ],
    "attention": [
        {"at0": torch.randn(5, 8)}, {"at3": torch.ones(5, 9, dtype=torch.bool)}, {"at4": 0.5}, {"at5": 1},
        {"at1": torch.randn(2, 1, 9, 8)}, {"at1": torch.randn(2, 2, 9, 7)}, {"at2": torch.randn(2, 2, 8, 6)},
        {"at1": torch.randn(1, 2, 9, 8)},
    ],
}  # fmt: skip


@pytest.mark.parametrize("op", NOT_TAKEN)
def test_unusual_calls_and_mistakes_are_left_to_the_long_way(op):
    for changes in NOT_TAKEN[op]:
        assert by_short_way(op, replaced(ARGUMENTS[op](), **changes)) is None, changes


def test_wanted_gradients_are_not_lost():
    for op, make in ARGUMENTS.items():
        arguments = make()
        arguments[0].requires_grad_()
        assert by_short_way(op, arguments, grad_enabled=True) is None
        assert getattr(bigkern, op)(*arguments).requires_grad
        with torch.no_grad():
            assert not getattr(bigkern, op)(*arguments).requires_grad


def test_bad_targets_are_errors():
    input, target, *rest = loss_arguments()
    target[2] = 5
    with pytest.raises(IndexError, match=r"^Target 5 is out of bounds\.$"):
        by_short_way("cross_entropy", (input, target, *rest))


def test_closed_while_somebody_watches():
    """Modes, transforms and forced backends see the operators that they ask for."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert short_way() is cpu.module()
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    for watcher in (Functions, Operators, autocast, forward_ad.dual_level, lambda: bigkern.use_backend("cpu")):
        with watcher():
            assert short_way() is None
    seen = []
    torch.func.vmap(lambda x: (seen.append(short_way()), x)[1])(torch.ones(2))
    assert seen == [None]
    assert short_way() is cpu.module()
