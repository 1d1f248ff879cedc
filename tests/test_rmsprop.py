import pytest
import torch
from torch.library import opcheck

import bigkern
from tests.optimizer_cases import check_against_oracle, draw_grads, draw_tensors

OPTIONS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1, "maximize": True, "eps": 1e-3},
    {"centered": True, "alpha": 0.9, "max_grad_norm": 0.5},
    {"centered": True, "alpha": 0.9, "momentum": 0.9, "master_weights": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_match_the_oracle(place, options):
    dtypes = place.dtypes
    if options.get("centered") and not options.get("master_weights"):
        # A variance as the difference of two rounded numbers may be negative, in PyTorch's float16 too.
        dtypes = [dtype for dtype in dtypes if dtype != torch.float16]
    check_against_oracle(place, "RMSprop", 3, dtypes, lr=0.01, skip_some=True, large=not place.slow, **options)


def test_a_hundred_steps_match_the_oracle(place):
    options = {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01}
    check_against_oracle(place, "RMSprop", 100, place.dtypes[:1], **options)


def test_registration_is_complete():
    params = draw_tensors()
    steps = [torch.tensor(3.0) for _ in params]
    averages = [grad / 10 for grad in draw_grads(params)]
    lists = params, draw_grads(params), [a.square() + 1 for a in averages], averages, draw_grads(params), steps, []
    arguments = (*lists, torch.tensor(0.5), torch.tensor(0.0), 0.1, 0.9, 1e-8, 0.01, 0.9, False, True)
    opcheck(torch.ops.bigkern.rmsprop_step.default, arguments)


def test_errors_say_what_is_wrong():
    x, step = torch.ones(3), torch.tensor(0.0)
    with pytest.raises(ValueError, match="rmsprop: square_avgs must not be empty"):
        bigkern.rmsprop([x], [x], [], [], [], [step], lr=0.1)
    with pytest.raises(ValueError, match=r"rmsprop: momentum 0\.9 needs momentum_buffers"):
        bigkern.rmsprop([x], [x], [x], [], [], [step], lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"rmsprop: grad_avgs\[0\] must be torch.float32, got torch.float64"):
        bigkern.rmsprop([x], [x], [x], [x.double()], [], [step], lr=0.1)
