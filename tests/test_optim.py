"""bigkern.optim as a drop-in: what its classes share with torch.optim's beyond the arithmetic of a step."""

import copy
import inspect
import io
import math

import pytest
import torch
from torch import nn

import bigkern
from bigkern import optim
from tests.optimizer_cases import draw_grads, draw_tensors, in_one_line, results_of, run_optimizer

# Every class with options that give it all of its state.
CLASSES = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01},
}
every_class = pytest.mark.parametrize("name", CLASSES)


def both(name):
    return getattr(optim, name), getattr(torch.optim, name)


def train(model, optimizer, steps, scheduler=None):
    """Losses of `steps` steps on fixed data."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(32, 6, generator=generator), torch.randn(32, 3, generator=generator)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


@every_class
def test_arguments_and_defaults_are_pytorchs(name):
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in both(name))
    extras = ["max_grad_norm", "zero_grad", "master_weights"]
    assert list(ours) == [*theirs, *extras]
    for key in list(theirs)[1:]:
        assert (ours[key].default, ours[key].kind) == (theirs[key].default, theirs[key].kind)
    assert optim.SGD.__doc__ != torch.optim.SGD.__doc__
    assert isinstance(both(name)[0]([torch.zeros(1)]), both(name)[1])


@every_class
def test_a_checkpoint_of_one_is_resumed_by_the_other_with_the_same_losses(name):
    for first, second in (both(name), both(name)[::-1]):
        model = model_of()
        optimizer = first(model.parameters(), **CLASSES[name])
        train(model, optimizer, 5)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        expected = train(model, optimizer, 5)

        resumed = model_of(1)
        saved = torch.load(file)
        resumed.load_state_dict(saved["model"])
        other = second(resumed.parameters(), lr=1.0)  # the checkpoint brings the options
        other.load_state_dict(saved["optimizer"])
        torch.testing.assert_close(train(resumed, other, 5), expected, rtol=2e-5, atol=0)
        assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
        for ours, theirs in zip(results_of(other).items(), results_of(optimizer).items(), strict=True):
            assert ours[0] == theirs[0]
            torch.testing.assert_close(ours[1], theirs[1], rtol=2e-5, atol=1e-5)


@every_class
def test_schedulers_groups_and_closures_work(name):
    results = []
    for cls in both(name):
        model = model_of()
        options = {key: value for key, value in CLASSES[name].items() if key != "lr"}
        groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
        optimizer = cls(groups, lr=0.01, **options)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
        scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer, [warm_up, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)], [3]
        )
        losses = train(model, optimizer, 8, scheduler)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 6)).square().sum()
            loss.backward()
            return loss

        results.append(
            [*losses, optimizer.step(closure).item(), *in_one_line(results_of(optimizer)["params"]).tolist()]
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@every_class
def test_nan_and_infinity_spread_as_in_pytorch(place, name):
    params = [torch.ones(40, device=place.device)]
    grads_of_steps = [[torch.ones(40, device=place.device)] for _ in range(3)]
    grads_of_steps[0][0][3] = math.nan
    grads_of_steps[1][0][[0, 20, 39]] = math.inf
    grads_of_steps[1][0][[5, 37]] = -math.inf
    ours, theirs = both(name)
    with place.use():
        found = run_optimizer(lambda leaves: ours(leaves, **CLASSES[name]), params, grads_of_steps)
    expected = run_optimizer(lambda leaves: theirs(leaves, **CLASSES[name]), params, grads_of_steps)
    for what, tensors in found.items():
        torch.testing.assert_close(tensors, expected[what], equal_nan=True, rtol=1e-5, atol=1e-6)


@every_class
def test_zero_grad_and_found_inf(place, name):
    """zero_grad leaves zeros, whatever the layout; a step that found_inf skips changes nothing else."""
    params = [p.requires_grad_() for p in draw_tensors(device=place.device)]
    optimizer = both(name)[0](params, zero_grad=True, **CLASSES[name])
    for found_inf in (0.0, 1.0, 0.0):
        for param, grad in zip(params, draw_grads(params), strict=True):
            param.grad = grad
        before = copy.deepcopy(results_of(optimizer))
        optimizer.found_inf = torch.tensor(found_inf, device=place.device)
        with place.use():
            optimizer.step()
        assert all((param.grad == 0).all() for param in params)
        after = results_of(optimizer)
        changed = [what for what in before if not torch.equal(in_one_line(before[what]), in_one_line(after[what]))]
        assert bool(changed) == (found_inf == 0), changed


@every_class
def test_the_number_of_threads_changes_no_bit(name):
    params = [torch.randn(n) for n in (70_001, 3, 40_000, 0)]
    grads_of_steps = [draw_grads(params) for _ in range(2)]
    make, threads, found = lambda leaves: both(name)[0](leaves, **CLASSES[name]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run_optimizer(make, params, grads_of_steps))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for what, tensors in found[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, other[what], strict=True))


def test_step_counts_on_the_device_give_the_same_corrections(monkeypatch):
    """As on a GPU with capturable=True: kernels read the counts themselves, with parameters at different steps."""
    pytest.importorskip("triton")
    from bigkern.kernels import adagrad, adam

    params, grads = draw_tensors(), draw_grads(draw_tensors())
    steps = [torch.tensor(float(3**i)) for i in range(len(params))]
    found = []
    for on_host in (adam.on_host, lambda state_steps: None):
        monkeypatch.setattr(adam, "on_host", on_host)
        monkeypatch.setattr(adagrad, "on_host", on_host)
        copies = [
            [t.clone() for t in tensors] for tensors in (params, grads, grads, [g.square() for g in grads], steps)
        ]
        sums = [[t.clone() for t in tensors] for tensors in (params, grads, [g.square() for g in grads], steps)]
        with bigkern.use_backend("triton"):
            bigkern.adam(*copies[:4], [], copies[4], lr=0.1)
            bigkern.adagrad(*sums, lr=0.1, lr_decay=0.1)
        found.append([in_one_line(copies[0]), in_one_line(sums[0])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)


# ---- mixed precision ---------------------------------------------------------------------------------------------


def test_master_weights_keep_what_low_precision_loses():
    """Steps too small for bfloat16 to see add up in the master weight, and survive a checkpoint."""
    param = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    plain = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = optim.SGD([param], lr=1e-4, master_weights=True)
    without = optim.SGD([plain], lr=1e-4)
    for step in range(100):
        param.grad, plain.grad = torch.ones_like(param), torch.ones_like(plain)
        optimizer.step()
        without.step()
        if step == 50:
            saved = copy.deepcopy(optimizer.state_dict())
            assert saved["state"][0]["master_param"].dtype == torch.float32
            optimizer = optim.SGD([param], lr=1e-4)
            optimizer.load_state_dict(saved)
    assert optimizer.state[param]["master_param"].allclose(torch.tensor(0.99), atol=1e-5)
    assert torch.equal(param, torch.full_like(param, 0.99))
    assert (plain == 1).all()


def test_a_master_weight_that_pytorch_passed_on_is_not_trusted():
    """torch.optim loads it, rounds it and lets the parameter move on without it."""
    param = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    ours = optim.Adam([param], lr=0.1, master_weights=True)
    param.grad = torch.ones_like(param)
    ours.step()
    theirs = torch.optim.Adam([param], lr=0.1)
    theirs.load_state_dict(ours.state_dict())
    theirs.step()
    moved = param.detach().clone()
    again = optim.Adam([param], lr=0.0)
    again.load_state_dict(theirs.state_dict())
    again.param_groups[0]["lr"] = 0.0
    again.step()
    assert torch.equal(param, moved)
    assert again.state[param]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_unscales_and_skips_as_with_pytorch(fused):
    """With fused=True the kernel does both, and clips what is left."""
    results = []
    for module, options in ((optim, {"max_grad_norm": 0.5}), (torch.optim, {})):
        param = torch.ones(7, requires_grad=True)
        optimizer = module.Adam([param], lr=0.1, fused=fused, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale((param * torch.arange(7.0)).sum() * (math.inf if step == 1 else 1)).backward()
            if module is torch.optim:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_([param], 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append((param.detach(), scaler.get_scale(), optimizer.state[param]["step"]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert results[0][2] == 3


def test_dtypes_and_missing_gradients_may_be_mixed(place):
    params = [torch.ones(9, dtype=dtype, device=place.device) for dtype in place.dtypes for _ in range(2)]
    grads_of_steps = [[g if i % 3 else None for i, g in enumerate(draw_grads(params))], draw_grads(params)]
    for options in ({}, {"master_weights": True}):
        with place.use():
            found = run_optimizer(lambda leaves, o=options: optim.AdamW(leaves, 0.1, **o), params, grads_of_steps)
        expected = run_optimizer(lambda leaves: torch.optim.AdamW(leaves, 0.1), params, grads_of_steps)
        for ours, theirs in zip(found["params"], expected["params"], strict=True):
            # Two steps of PyTorch's in low precision are each rounded several times.
            torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(ours.dtype).eps, atol=0)
        assert found["step"] == expected["step"]


# ---- in PyTorch --------------------------------------------------------------------------------------------------


def test_autograd_notices_a_step_between_forward_and_backward():
    weight = torch.ones(3, requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_class
def test_a_compiled_step_is_the_same(name):
    found = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="aot_eager")):
        params = [torch.full((5,), 2.0, requires_grad=True), torch.ones(3, 2, requires_grad=True)]
        optimizer = both(name)[0](params, **CLASSES[name], max_grad_norm=1.0)
        step = wrap(optimizer.step)
        for _ in range(3):
            for param in params:
                param.grad = param.detach() * 3
            step()
        found.append(in_one_line(results_of(optimizer)["params"]))
    assert torch.equal(*found)


def test_copies_keep_their_options():
    optimizer = optim.Adam([torch.ones(3, requires_grad=True)], max_grad_norm=2.0, zero_grad=True)
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups[0]["max_grad_norm"] == 2.0
    twin.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert twin.param_groups[1]["zero_grad"] is True


def test_the_norm_before_clipping_is_kept_and_gradients_are_not_touched():
    param = torch.zeros(2, requires_grad=True)
    param.grad = torch.tensor([3.0, 4.0])
    optimizer = optim.SGD([param], lr=1.0, max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 5
    torch.testing.assert_close(param.detach(), torch.tensor([-0.6, -0.8]))
    assert param.grad.tolist() == [3, 4]


def test_a_learning_rate_may_be_a_tensor():
    param = torch.zeros(2, requires_grad=True)
    param.grad = torch.ones(2)
    optim.SGD([param], lr=torch.tensor(0.5)).step()
    assert param.tolist() == [-0.5, -0.5]


def test_explain_says_where_a_step_runs():
    param = torch.zeros(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = optim.SGD([param], lr=0.5, max_grad_norm=1.0)
    norm, step = bigkern.explain(optimizer.step)
    assert (norm.kernel, norm.chosen, step.kernel, step.chosen) == ("grad_norm_forward", "cpu", "sgd_step", "cpu")
    assert (param == 0).all()


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": -1.0}), ("SGD", {"momentum": -1.0}), ("SGD", {"weight_decay": -1.0}), ("SGD", {"nesterov": True}),
        ("SGD", {"fused": True, "foreach": True}), ("SGD", {"lr": torch.ones(2)}),
        ("Adam", {"lr": -1.0}), ("Adam", {"betas": (1.0, 0.9)}), ("Adam", {"betas": (0.9, -1.0)}), ("AdamW", {"eps": -1.0}),
        ("AdamW", {"weight_decay": -1.0}), ("RMSprop", {"alpha": -1.0}), ("RMSprop", {"momentum": -1.0}),
        ("Adagrad", {"lr_decay": -1.0}), ("Adagrad", {"initial_accumulator_value": -1.0}),
    ],
)  # fmt: skip
def test_wrong_options_raise_what_pytorch_raises(name, options):
    messages = []
    for cls in both(name):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            cls([torch.zeros(2)], **options)
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


@every_class
def test_what_is_not_supported_says_so(name):
    ours, theirs = both(name)
    with pytest.raises(NotImplementedError, match=f"bigkern.optim.{name}: differentiable=True is not supported"):
        ours([torch.zeros(2)], differentiable=True)
    with pytest.raises(ValueError, match="Invalid max_grad_norm value: 0"):
        ours([torch.zeros(2)], max_grad_norm=0)
    param = torch.zeros(4, 2, requires_grad=True)
    param.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients") as caught:
        ours([param]).step()
    if name in ("Adam", "AdamW", "RMSprop"):
        with pytest.raises(RuntimeError) as expected:
            theirs([param]).step()
        assert str(caught.value) == str(expected.value)
    complex_param = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    complex_param.grad = torch.ones_like(complex_param)
    with pytest.raises(
        TypeError, match=f"{name.removesuffix('W').lower()}: params must be floating, got torch.complex64"
    ):
        ours([complex_param]).step()
