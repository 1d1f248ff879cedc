import pytest
import torch
from torch.library import opcheck

import bigkern
from bigkern.cuda import adam as cuda_adam
from tests.cuda_emulator import machine as cuda_emulator
from tests.optimizer_cases import check_against_oracle, draw_grads, draw_tensors, in_one_line
from tests.support import EMULATOR

OPTIONS = [
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1, "maximize": True, "betas": (0.3, 0.9), "eps": 1e-3}),
    ("Adam", {"amsgrad": True, "max_grad_norm": 0.5}),
    ("AdamW", {"weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"weight_decay": 0.1, "amsgrad": True, "master_weights": True}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_steps_match_the_oracle(place, name, options):
    check_against_oracle(place, name, 3, lr=0.1, skip_some=True, large=not place.slow, **options)


def test_a_hundred_steps_match_the_oracle(place):
    check_against_oracle(place, "Adam", 100, place.dtypes[:1], lr=0.01, weight_decay=0.01)
    check_against_oracle(place, "AdamW", 100, [torch.bfloat16], lr=0.01, master_weights=True)


def test_registration_is_complete():
    params = draw_tensors()
    steps = [torch.tensor(3.0) for _ in params]
    squares = [grad.square() for grad in draw_grads(params)]
    for largest, found_inf in (([], None), ([s + 1 for s in squares], torch.tensor(0.0))):
        lists = params, draw_grads(params), draw_grads(params), squares, largest, steps, []
        arguments = (*lists, torch.tensor(0.5), found_inf, 0.1, 0.9, 0.999, 1e-8, 0.01, True, False, True)
        opcheck(torch.ops.bigkern.adam_step.default, arguments)


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        (lambda p, s: ([p], [p], [], [], [], [s]), ValueError, "adam: exp_avgs and exp_avg_sqs must not be empty"),
        (lambda p, s: ([p], [p], [p], [p[:2]], [], [s]), ValueError, "adam: exp_avg_sqs[0] must have shape (3,), got (2,)"),
        (lambda p, s: ([p], [p], [p], [p], [], []), ValueError, "adam: 1 params, but 0 state_steps"),
        (lambda p, s: ([p], [p], [p], [p], [], [s.int()]), TypeError, "adam: state_steps must be float32 or float64, got torch.int32"),
        (lambda p, s: ([p], [p], [p], [p], [], [p]), ValueError, "adam: state_steps must hold one number each, got shape (3,)"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(lists, error, message):
    with pytest.raises(error) as caught:
        bigkern.adam(*lists(torch.ones(3), torch.tensor(0.0)), lr=0.1)
    assert str(caught.value) == message


@pytest.mark.skipif(cuda_emulator.unavailable() is not None, reason=str(cuda_emulator.unavailable()))
def test_cuda_kernels_read_step_counts_on_the_device(monkeypatch):
    """As on a GPU with capturable=True: parameters at different steps, counted in float32 and in float64."""
    params, grads = draw_tensors(), draw_grads(draw_tensors())
    squares = [grad.square() for grad in grads]
    found = []
    for on_host, dtype in ((cuda_adam.on_host, torch.float32), (None, torch.float32), (None, torch.float64)):
        monkeypatch.setattr(cuda_adam, "on_host", on_host or (lambda state_steps: None))
        copies = [[t.clone() for t in tensors] for tensors in (params, grads, grads, squares)]
        steps = [torch.tensor(3.0**i, dtype=dtype) for i in range(len(params))]
        with EMULATOR.use():
            bigkern.adam(*copies, [], steps, lr=0.1)
        found.append(in_one_line(copies[0]))
    for on_device in found[1:]:
        torch.testing.assert_close(on_device, found[0], rtol=1e-6, atol=1e-7)
