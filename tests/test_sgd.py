import pytest
import torch
from torch.library import opcheck

import bigkern
from tests.optimizer_cases import check_against_oracle, draw_grads, draw_tensors

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "max_grad_norm": 0.5},
    {"momentum": 0.9, "dampening": 0.3, "master_weights": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_match_the_oracle(place, options):
    check_against_oracle(place, "SGD", 3, lr=0.1, skip_some=True, large=not place.slow, **options)


def test_a_hundred_steps_match_the_oracle(place):
    check_against_oracle(place, "SGD", 100, place.dtypes[:1], lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
    if not place.slow:
        check_against_oracle(place, "SGD", 100, [torch.bfloat16], lr=0.01, momentum=0.9, master_weights=True)


def test_registration_is_complete():
    params = draw_tensors()
    lists = params, draw_grads(params), draw_grads(params), []
    for factor, found_inf in ((None, None), (torch.tensor(0.5), torch.tensor(0.0))):
        arguments = (*lists, factor, found_inf, 0.1, 0.9, 0.0, 0.01, False, False, False, True)
        opcheck(torch.ops.bigkern.sgd_step.default, arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: bigkern.sgd([p.int()], [p], [], lr=1), TypeError, "sgd: params must be floating, got torch.int32"),
        (lambda p: bigkern.sgd([p], [], [], lr=1), ValueError, "sgd: 1 params, but 0 grads"),
        (lambda p: bigkern.sgd([p], [p[:2]], [], lr=1), ValueError, "sgd: grads[0] must have shape (3,), got (2,)"),
        (lambda p: bigkern.sgd([p], [p.half()], [], lr=1), TypeError, "sgd: grads[0] must be torch.float32, got torch.float16"),
        (lambda p: bigkern.sgd([p], [p], [], lr=1, momentum=0.5), ValueError, "sgd: momentum 0.5 needs momentum_buffers"),
        (lambda p: bigkern.sgd([p], [p], [], lr=1, master_params=[p]), TypeError, "sgd: master_params go with float16 and bfloat16 params"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call(torch.ones(3))
    assert str(caught.value) == message
