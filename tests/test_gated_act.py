import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from bigkern.ops.gated_act import ACTIVATIONS, gated_act_backward, gated_act_forward
from bigkern.reference import gated_act as reference
from tests.support import assert_within_policy, max_error, to_oracle


def composed(gate, up=None, activation="silu"):
    """What a PyTorch user would write."""
    if up is None:
        gate, up = gate.chunk(2, -1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def draw(place, shape, dtype=torch.float32, packed=False):
    if packed:
        return [torch.randn(*shape[:-1], 2 * shape[-1], device=place.device).mul(3).to(dtype)]
    return [torch.randn(shape, device=place.device).mul(3).to(dtype) for _ in range(2)]


def with_gradients(function, tensors, grad_output, activation):
    tensors = [t.detach().requires_grad_() for t in tensors]
    output = function(*tensors, activation=activation)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output)]


def check(place, tensors, activation="silu", grad_output=None):
    """Output and gradients within the numerical policy."""
    columns = tensors[0].shape[-1] // (3 - len(tensors))
    shape = (*tensors[0].shape[:-1], columns)
    if grad_output is None:
        grad_output = torch.randn(shape, device=place.device).to(tensors[0].dtype)
    with place.use():
        found = with_gradients(bigkern.gated_act, tensors, grad_output, activation)
    theirs = with_gradients(composed, tensors, grad_output, activation)
    rows = grad_output.shape[:-1].numel()
    arrays = [to_oracle(t).reshape(rows, t.shape[-1]) for t in tensors]
    gate, up = arrays if len(arrays) == 2 else (arrays[0], None)
    (output,) = reference.gated_act_forward(gate, up, activation)
    grads = reference.gated_act_backward(to_oracle(grad_output).reshape(rows, columns), gate, up, activation)
    for mine, other, right, name in zip(
        found, theirs, (output, *grads), ("output", "grad_gate", "grad_up"), strict=False
    ):
        assert mine.dtype == tensors[0].dtype
        assert_within_policy(mine, right.reshape(mine.shape), other, what=f"{activation} {name}")
    return found


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 33), (3, 300), (2, 1025)])
def test_matches_oracle(place, activation, shape):
    for dtype in place.dtypes:
        check(place, draw(place, shape, dtype), activation)
        check(place, draw(place, shape, dtype, packed=True), activation)


@given(rows=st.integers(0, 30), columns=st.integers(0, 90), packed=st.booleans(), seed=st.integers(0, 99))
def test_any_shape(place, rows, columns, packed, seed):
    torch.manual_seed(seed)
    check(place, draw(place, (rows, columns), packed=packed), ACTIVATIONS[seed % 3])


def test_scalars_and_vectors(place):
    for shape in ((), (9,)):
        gate, up = (torch.randn(shape, device=place.device) for _ in range(2))
        with place.use():
            output = bigkern.swiglu(gate, up)
        assert_within_policy(output, to_oracle(F.silu(gate.double()) * up), F.silu(gate) * up)
        assert output.shape == shape


def test_any_layout(place):
    gate, up = draw(place, (6, 5, 8))
    grad_output = torch.randn(6, 5, 8, device=place.device)
    for layout in (
        gate.transpose(0, 2).contiguous().transpose(0, 2),
        torch.cat([gate, gate], 2)[..., 1:9],
        gate[:1].expand(6, 5, 8),
        gate[..., :1].expand(6, 5, 8),
    ):
        check(place, [layout, up])
        check(place, [up, layout])
        check(place, [layout])
    check(place, [gate, up], grad_output=grad_output.transpose(0, 2).contiguous().transpose(0, 2))
    check(place, [gate, up], grad_output=grad_output[:1, :1, :1].expand(6, 5, 8))


def test_large_and_non_finite_gates(place):
    values = torch.tensor([-1e10, -100.0, -20, -5, -1e-20, 0, 1e-20, 5, 20, 100, 1e10], device=place.device)
    for activation in ACTIVATIONS:
        check(place, [values[None], torch.ones_like(values)[None]], activation)
        special = torch.tensor([[float("nan"), float("inf"), 1.0]], device=place.device)
        with place.use():
            output = bigkern.gated_act(special, torch.ones_like(special), activation)
        assert output[0, 0].isnan()
        assert output[0, 2].isfinite()
        if place.backend != "torch":  # whose gelu of infinity is NaN
            assert output[0, 1] == float("inf")


def test_names_and_approximations(place):
    gate, up = draw(place, (4, 9))
    with place.use():
        assert torch.equal(bigkern.swiglu(gate, up), bigkern.gated_act(gate, up, "silu"))
        assert torch.equal(bigkern.geglu(gate, up), bigkern.gated_act(gate, up, "gelu"))
        assert torch.equal(bigkern.geglu(gate, up, "tanh"), bigkern.gated_act(gate, up, "gelu_tanh"))
        both = torch.cat([gate, up], 1)
        for op in (bigkern.functional.swiglu, bigkern.functional.geglu):
            torch.testing.assert_close(op(both), op(gate, up))
            # PyTorch's own gelu of a view differs in the last bits.
            assert place.backend == "torch" or torch.equal(op(both), op(gate, up))


def test_first_and_second_derivatives(place):
    if torch.float64 not in place.dtypes:
        pytest.skip("float64 is left to PyTorch there")
    for activation in ACTIVATIONS:
        for packed in (False, True):
            tensors = [t.requires_grad_() for t in draw(place, (2, 3), torch.float64, packed)]
            call = lambda *tensors: bigkern.gated_act(*tensors, activation=activation)  # noqa: B023, E731
            with place.use():
                assert torch.autograd.gradcheck(call, tensors)
                assert torch.autograd.gradgradcheck(call, tensors)


def test_only_what_requires_grad_gets_one(place):
    gate, up = draw(place, (20, 6))
    with place.use():
        bigkern.swiglu(gate, up.requires_grad_()).sum().backward()
    torch.testing.assert_close(up.grad, F.silu(gate))
    assert gate.grad is None


def test_registration_is_complete():
    for packed in (False, True):
        tensors = [torch.randn(3, 6, requires_grad=True) for _ in range(2)]
        gate, up = (tensors[0], None) if packed else tensors
        torch.library.opcheck(gated_act_forward.op, (gate, up, "silu"))
        grad = torch.randn(3, 3 if packed else 6, requires_grad=True)
        torch.library.opcheck(gated_act_backward.op, (grad, gate, up, "gelu"))


@bigkern.use_backend("cpu")
def test_compiles_with_dynamic_shapes():
    step = lambda gate, up, activation: bigkern.gated_act(gate * 2, up, activation).sin()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 8), (5, 6), (2, 5, 4)):
        tensors, grad_output = [torch.randn(shape), torch.randn(shape)], torch.randn(shape)
        found, right = (with_gradients(f, tensors, grad_output, "silu") for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_the_oracles_gradient_is_that_of_its_output():
    rng = np.random.default_rng(0)
    gate, up, grad = (rng.normal(size=(2, 3)) for _ in range(3))
    for activation in ACTIVATIONS:
        found = reference.gated_act_backward(grad, gate, up, activation)
        for which, array in enumerate((gate, up)):
            for i in np.ndindex(array.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [gate.copy(), up.copy()]
                    moved[which][i] += step
                    ends.append((reference.gated_act_forward(*moved, activation)[0] * grad).sum())
                assert max_error(found[which][i], (ends[0] - ends[1]) / 2e-6) < 1e-7


X = torch.ones(3, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bigkern.gated_act(X, X, "relu"), ValueError, "gated_act: activation must be one of silu, gelu, gelu_tanh, got 'relu'"),
        (lambda: bigkern.swiglu(X), ValueError, "gated_act: without up, gate's last dimension must be even, got shape (3, 5)"),
        (lambda: bigkern.swiglu(X, X[:2]), ValueError, "gated_act: up has shape (2, 5), gate (3, 5)"),
        (lambda: bigkern.swiglu(X, X.double()), RuntimeError, "gated_act: up must be torch.float32 as gate, got torch.float64"),
        (lambda: bigkern.swiglu(X.long(), X), RuntimeError, "gated_act: gate must be floating, got torch.int64"),
        (lambda: bigkern.swiglu(X, X.to("meta")), RuntimeError, "gated_act: up is on meta, gate on cpu"),
        (lambda: bigkern.geglu(X, X, "erf"), RuntimeError, "approximate argument must be either none or tanh."),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
