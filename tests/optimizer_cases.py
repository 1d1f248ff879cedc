"""What the optimizers' tests share: parameters of awkward shapes and layouts, and a run against the oracle."""

from functools import partial

import torch

import bigkern
from tests.support import assert_within_policy


def draw_tensors(dtype=torch.float32, device="cpu", large=False, few=False):
    """Tensors that are scalar, empty, of odd sizes, channels_last, transposed, and (the last) with gaps.

    large: also one that several threads share. few: only two of them.
    """
    tensors = [torch.randn(13, 11).t()]
    if not few:
        tensors += [torch.randn(shape) for shape in ((), (1,), (0, 3), (7,), (3, 5, 7), (33, 65))]
        tensors.append(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    if large:
        tensors.append(torch.randn(20_011))
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    return [*tensors, torch.randn(6, 10).to(device, dtype)[:, ::3]]


def draw_grads(params):
    """Gradients for `params`, all contiguous: for some of them that is another layout than the parameter's."""
    return [torch.randn(p.shape).to(p.device, p.dtype) for p in params]


def results_of(optimizer):
    """{name: tensors} of the parameters and of every tensor of the state."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = {"params": [p.detach().clone() for p in params]}
    for name in dict.fromkeys(key for p in params for key in optimizer.state[p]):
        found[name] = [optimizer.state[p][name] for p in params if name in optimizer.state[p]]
    return found


def copy_of(tensor):
    """A copy with the same strides, gaps included."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def run_optimizer(make, params, grads_of_steps, clip=None):
    """`results_of` the optimizer that `make(params)` gives after a step with each list of gradients (None: no grad),
    clipped by torch.nn.utils to the norm `clip` before."""
    leaves = [copy_of(p).requires_grad_() for p in params]
    optimizer = make(leaves)
    for grads in grads_of_steps:
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = None if grad is None else grad.to(leaf.dtype).clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves, clip)
        optimizer.step()
    return results_of(optimizer)


def to_double(tensors):
    return [None if t is None else t.double() for t in tensors]


def check_against_oracle(place, name, steps, dtypes=None, large=False, skip_some=False, **every_options):
    """`steps` steps of bigkern.optim.<name> at `place` end within the policy of the float64 oracle, in every dtype.

    skip_some: every third gradient of every second step is missing.
    """
    ours, theirs = getattr(bigkern.optim, name), getattr(torch.optim, name)
    for dtype in dtypes or place.dtypes:
        options = dict(every_options)
        if dtype == torch.float16 and name != "SGD" and not options.get("master_weights"):
            options["eps"] = 1e-2  # squares of small gradients are 0 in float16, and an epsilon of 1e-8 is too
        torch_options = {key: value for key, value in options.items() if key not in ("max_grad_norm", "master_weights")}
        params = draw_tensors(dtype, place.device, large, few=steps > 10)
        grads_of_steps = [draw_grads(params) for _ in range(steps)]
        if skip_some:
            for grads in grads_of_steps[::2]:
                grads[::3] = [None] * len(grads[::3])
        with place.use():
            found = run_optimizer(partial(ours, **options), params, grads_of_steps)
        if options.get("master_weights") and dtype in (torch.float16, torch.bfloat16):
            params_of_torch = [p.float() for p in params]
            masters = found.pop("master_param")
            # Triton's interpreter truncates to bfloat16, where a GPU rounds.
            ulps = 1 if place.slow else 0.5
            for param, master in zip(found["params"], masters, strict=True):
                assert ((param - master).abs() <= ulps * torch.finfo(dtype).eps * master.abs() + 1e-7).all()
            found["params"] = masters
        else:
            params_of_torch = params
        clip = options.get("max_grad_norm")
        expected = run_optimizer(partial(theirs, **torch_options), params_of_torch, grads_of_steps, clip)
        exact = [to_double(grads) for grads in grads_of_steps]
        with bigkern.use_backend("reference"):
            oracle = run_optimizer(partial(ours, **options), to_double(params), exact)
        assert found.keys() == oracle.keys() == expected.keys()
        for what in found:
            assert [t.dtype for t in found[what]] == [t.dtype for t in expected[what]]
            # A list is one result: an element near 0 is held against the others, not against itself.
            line, exact_line, torch_line = (in_one_line(results[what]) for results in (found, oracle, expected))
            assert_within_policy(line, exact_line, torch_line, what=f"{name} {what}")


def in_one_line(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
