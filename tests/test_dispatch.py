import threading

import pytest
import torch
from torch.autograd import forward_ad

import bigkern
from bigkern import dispatch, registration
from bigkern.backends import BACKENDS
from bigkern.registration import KERNELS
from tests.support import run_python


def test_auto_takes_the_cpu_kernels_for_cpu_tensors():
    (decision,) = bigkern.explain(bigkern.quantize, torch.randn(3, 4), axis=0)
    assert decision.kernel == "quantize_forward"
    assert decision.chosen == "cpu"
    assert set(decision.reasons) == set(BACKENDS) - {"cpu"}
    assert "not reference: the oracle, for tests" in str(decision)


def test_explain_computes_nothing(monkeypatch):
    def fail(kernel, args):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr(BACKENDS["cpu"], "run", fail)
    assert bigkern.explain(bigkern.quantize, torch.randn(3, 4))[0].chosen == "cpu"


def test_ops_take_meta_tensors():
    """Shapes, dtypes and gradients of what would be computed; PyTorch's own functions do the same."""
    query = torch.empty(2, 3, 5, 8, device="meta", requires_grad=True)
    output = bigkern.attention(query, query, query)
    output.sum().backward()
    assert (output.shape, output.device.type, query.grad.shape) == (query.shape, "meta", query.shape)
    qweight, scale = torch.empty(6, 8, dtype=torch.int8, device="meta"), torch.empty(6, device="meta")
    assert bigkern.int8_linear(query, qweight, scale).shape == (2, 3, 5, 6)
    with pytest.raises(TypeError, match="linear_act: weight has dtype"):
        bigkern.linear_act(query, torch.empty(6, 8, dtype=torch.float16, device="meta"))


def test_a_forced_backend_that_cannot_run_raises_with_the_reason(monkeypatch):
    monkeypatch.delitem(KERNELS["quantize_forward"].supports, "cuda")
    with bigkern.use_backend("cuda"), pytest.raises(RuntimeError) as caught:
        bigkern.quantize(torch.randn(3))
    assert str(caught.value) == (
        "quantize: backend 'cuda' cannot run quantize_forward: no cuda kernel is written for quantize"
    )


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="unknown backend 'gpu'; one of auto, reference, cpu, triton, cuda, torch"):
        bigkern.use_backend("gpu").__enter__()


def test_environment_variable_forces_a_backend():
    code = "import bigkern, torch; print(bigkern.explain(bigkern.quantize, torch.randn(3))[0].chosen)"
    assert run_python(code, BIGKERN_BACKEND="torch") == "torch"
    in_block = code.replace("print", "\nwith bigkern.use_backend('auto'): print")
    assert run_python(in_block, BIGKERN_BACKEND="torch") == "cpu"
    with pytest.raises(AssertionError, match="unknown backend 'nonsense'"):
        run_python(code, BIGKERN_BACKEND="nonsense")


def test_use_backend_nests_and_ends():
    with bigkern.use_backend("torch"):
        with bigkern.use_backend("reference"):
            assert dispatch.forced_backend() == "reference"
        assert dispatch.forced_backend() == "torch"
    assert dispatch.forced_backend() is None


def test_use_backend_is_a_choice_of_one_thread():
    seen = []
    with bigkern.use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.forced_backend()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_error_in_a_kernel_is_no_reason_to_try_another(monkeypatch):
    def fail(kernel, args):
        raise ZeroDivisionError("broken kernel")

    monkeypatch.setattr(BACKENDS["cpu"], "run", fail)
    with pytest.raises(ZeroDivisionError, match="broken kernel"):
        bigkern.quantize(torch.randn(3))


def test_backward_stays_on_the_backend_of_its_forward(monkeypatch):
    """Also where the backward runs outside the block, or on a thread of autograd's own."""
    ran = []
    original = BACKENDS["reference"].run
    monkeypatch.setattr(
        BACKENDS["reference"], "run", lambda kernel, args: ran.append(kernel.name) or original(kernel, args)
    )
    weight = torch.randn(4, 3, requires_grad=True)
    with bigkern.use_backend("reference"):
        output = bigkern.linear_act(torch.randn(2, 3), weight)
    thread = threading.Thread(target=output.sum().backward)
    thread.start()
    thread.join()
    assert ran == ["linear_act_forward", "linear_act_backward"]
    assert weight.grad is not None


def test_eager_shortcut_and_dispatcher_give_the_same():
    x = torch.randn(5, 6)
    direct = registration.KERNELS["quantize_forward"](x.view(1, 5, 6), False)
    through = torch.ops.bigkern.quantize_forward(x.view(1, 5, 6), False)
    for a, b in zip(direct, through, strict=True):
        assert torch.equal(a, b)


def test_modes_and_subclasses_see_the_operator():
    """A dispatch mode must see bigkern's operators by name, not the PyTorch calls inside them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        bigkern.quantize(torch.randn(4, 4), axis=0)
    assert "bigkern.quantize_forward.default" in names


def test_tensors_that_are_more_than_their_memory():
    """A lazily negated view is read with its sign; a tensor whose memory was freed is an error and not a crash."""
    negative = torch.complex(torch.randn(4, 8), torch.randn(4, 8)).conj().imag
    assert negative.is_neg()
    weight, heads = torch.randn(8, 8), torch.randn(1, 1, 4, 8)
    for backend in ("auto", "cpu"):
        with bigkern.use_backend(backend):
            for op, *rest in ((bigkern.linear_act, weight), (bigkern.quantize, 0), (bigkern.cross_entropy, weight[:4])):
                seen, expected = op(negative, *rest), op(negative.resolve_neg(), *rest)
                torch.testing.assert_close(seen, expected)
            as_heads = negative.view(1, 1, 4, 8)
            expected = bigkern.attention(heads, heads, as_heads.resolve_neg())
            assert torch.equal(bigkern.attention(heads, heads, as_heads), expected)
    freed = torch.randn(4, 8)
    freed.untyped_storage().resize_(0)
    with bigkern.use_backend("cpu"), pytest.raises(ValueError, match="a tensor has no memory"):
        bigkern.quantize(freed)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_forward_mode_derivatives_are_not_lost(backend):
    """They go through PyTorch's operators, which have the formulas."""
    input, weight, direction = torch.randn(4, 8), torch.randn(8, 8), torch.randn(4, 8)
    expected = torch.relu(input @ weight.T), (direction @ weight.T) * (input @ weight.T > 0)
    with bigkern.use_backend(backend):
        with forward_ad.dual_level():
            output = forward_ad.unpack_dual(bigkern.linear_act(forward_ad.make_dual(input, direction), weight))
        torch.testing.assert_close((output.primal, output.tangent), expected)
        by_transform = torch.func.jvp(lambda x: bigkern.linear_act(x, weight), (input,), (direction,))
    torch.testing.assert_close(by_transform, expected)


def test_inputs_of_a_saved_graph_cannot_be_changed_unseen():
    """Changing a saved input in place must raise in backward, not give a wrong gradient."""
    weight = torch.randn(4, 3, requires_grad=True)
    input = torch.randn(2, 3)
    output = bigkern.linear_act(input, weight)
    input.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


HAVE_A_SHORT_WAY = ("linear_act", "cross_entropy")
SMALL_AND_LARGE = {
    "linear_act": (lambda n: (torch.randn(n, n).requires_grad_(), torch.randn(n, n)), 8, 128),
    "cross_entropy": (lambda n: (torch.randn(n, n).requires_grad_(), torch.randint(n, (n,))), 8, 512),
    "layer_norm": (lambda n: (torch.randn(n, n), (n,)), 8, 1024),
    "rms_norm": (lambda n: (torch.randn(n, n), (n,)), 8, 256),
}


@pytest.mark.parametrize("op", SMALL_AND_LARGE)
def test_auto_leaves_very_small_calls_to_pytorch_and_says_so(op):
    """Where a gradient is wanted. Forcing a backend still runs the kernel."""
    make, small, large = SMALL_AND_LARGE[op]
    function = getattr(bigkern, op)
    inputs = make(small)
    (decision,) = bigkern.explain(function, *inputs)
    assert decision.chosen == "torch"
    assert "measured faster below" in decision.reasons["cpu"]
    assert "bigkern" not in type(function(*inputs).grad_fn).__name__
    assert bigkern.explain(function, *make(large))[0].chosen == "cpu"
    if op in HAVE_A_SHORT_WAY:
        with torch.no_grad():
            assert bigkern.explain(function, *inputs)[0].chosen == "cpu"
    with bigkern.use_backend("cpu"):
        assert bigkern.explain(function, *inputs)[0].chosen == "cpu"
        ours = function(*inputs)
    torch.testing.assert_close(function(*inputs), ours)


@pytest.mark.parametrize(("rows", "chosen"), [(2, "cpu"), (20, "torch"), (3000, "cpu")])
def test_few_and_many_logits_are_the_kernels_without_gradients(rows, chosen):
    arguments = torch.randn(rows, 100), torch.randint(100, (rows,))
    assert bigkern.explain(bigkern.cross_entropy, *arguments)[0].chosen == chosen
    with bigkern.use_backend(chosen):
        expected = bigkern.cross_entropy(*arguments)
    torch.testing.assert_close(bigkern.cross_entropy(*arguments), expected)
