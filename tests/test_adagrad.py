import pytest
import torch
from torch.library import opcheck

import bigkern
from tests.optimizer_cases import check_against_oracle, draw_grads, draw_tensors

OPTIONS = [
    {},
    {"lr_decay": 0.1, "weight_decay": 0.1, "maximize": True, "eps": 1e-3},
    {"initial_accumulator_value": 0.1, "max_grad_norm": 0.5},
    {"lr_decay": 0.1, "master_weights": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_match_the_oracle(place, options):
    check_against_oracle(place, "Adagrad", 3, lr=0.1, skip_some=True, large=not place.slow, **options)


def test_a_hundred_steps_match_the_oracle(place):
    check_against_oracle(place, "Adagrad", 100, place.dtypes[:1], lr=0.1, lr_decay=0.01, weight_decay=0.01)


def test_registration_is_complete():
    params = draw_tensors()
    sums = [grad.square() for grad in draw_grads(params)]
    lists = params, draw_grads(params), sums, [torch.tensor(3.0) for _ in params], []
    arguments = (*lists, torch.tensor(0.5), torch.tensor(0.0), 0.1, 0.01, 1e-10, 0.01, False, True)
    opcheck(torch.ops.bigkern.adagrad_step.default, arguments)


def test_errors_say_what_is_wrong():
    x, step = torch.ones(3), torch.tensor(0.0)
    with pytest.raises(ValueError, match="adagrad: state_sums must not be empty"):
        bigkern.adagrad([x], [x], [], [step], lr=0.1)
    with pytest.raises(ValueError, match="adagrad: 1 params, but 2 state_sums"):
        bigkern.adagrad([x], [x], [x, x], [step], lr=0.1)
