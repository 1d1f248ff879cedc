"""The tests that lstm, gru and rnn have in common; each op's test file subclasses `RecurrentTests`."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bigkern
from bigkern.backends.reference import to_numpy
from tests.support import assert_within_policy, max_error


def gradients(function, tensors, grad_outputs, **options):
    """[*outputs, gradient of each tensor that is not None]"""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = function(*tensors, **options)
    wanted = [t for t in tensors if t is not None]
    grads = torch.autograd.grad(outputs, wanted, [g.to(o) for g, o in zip(grad_outputs, outputs, strict=True)])
    return [*(output.detach() for output in outputs), *grads]


def backwards(sequences, lengths):
    """Each sequence [length, batch, features] from its last time to its first; what is beyond stays."""
    times = torch.arange(sequences.shape[0], device=sequences.device)[:, None]
    index = torch.where(times < lengths, lengths - 1 - times, times)
    return sequences.gather(0, index[:, :, None].expand(sequences.shape))


class RecurrentTests:
    """`name`: the op; `module`: torch.nn's; `num_gates`, `states`: how many gates, and the names of its states;
    `options`: what else the op takes."""

    name: str
    module: str
    num_gates: int
    states = ("h",)
    options = {}  # noqa: RUF012
    module_options = {}  # noqa: RUF012

    # ---- the op, PyTorch's own on the same arguments, and the oracle -------------------------------------------------

    def ours(self, *tensors, lengths=None, reverse=False):
        return getattr(bigkern, self.name)(*tensors, lengths=lengths, reverse=reverse, **self.options)

    def torch_layers(self):
        """torch's function over layers."""
        return getattr(torch, self.name)

    def theirs(self, gates_input, weight_hh, bias_hh, *states, lengths=None, reverse=False):
        """PyTorch's own, whose product with an identity leaves gates_input as it is."""
        length, batch, width = gates_input.shape
        ends = torch.full((batch,), length, device=gates_input.device) if lengths is None else lengths
        x = backwards(gates_input, ends) if reverse else gates_input
        params = [torch.eye(width).to(x), weight_hh]
        if bias_hh is not None:
            params += [torch.zeros(width).to(x), bias_hh]
        options = (params, bias_hh is not None, 1, 0.0, False, False)
        states = [state[None] for state in states]
        if lengths is None:
            output, *final = self.torch_layers()(x, states if len(states) > 1 else states[0], *options, False)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
            states = [state[:, packed.sorted_indices] for state in states]
            arguments = (packed.data, packed.batch_sizes, states if len(states) > 1 else states[0])
            data, *final = self.torch_layers()(*arguments, *options)
            output, _ = pad_packed_sequence(packed._replace(data=data), total_length=length)
            final = [state[:, packed.unsorted_indices] for state in final]
        return backwards(output, ends) if reverse else output, *(state[0] for state in final)

    def oracle(self, tensors, grad_outputs, **options):
        double = [None if t is None else t.double() for t in tensors]
        with bigkern.use_backend("reference"):
            return gradients(self.ours, double, [g.double() for g in grad_outputs], **options)

    @property
    def result_names(self):
        finals = [f"{state}_n" for state in self.states]
        grads = ["gates_input", "weight_hh", "bias_hh", *(f"{state}0" for state in self.states)]
        return ["output", *finals], [f"grad_{name}" for name in grads]

    def draw(self, place, length, batch, hidden, dtype=torch.float32, bias=True):
        """[gates_input, weight_hh, bias_hh, initial states], [gradients of the outputs]"""
        randn = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(place.device, dtype)  # noqa: E731
        width = self.num_gates * hidden
        tensors = [randn(length, batch, width), randn(width, hidden) / hidden**0.5, randn(width) if bias else None]
        tensors += [randn(batch, hidden) for _ in self.states]
        return tensors, [randn(length, batch, hidden), *(randn(batch, hidden) for _ in self.states)]

    def check(self, place, tensors, grad_outputs, what="", **options):
        """Outputs and gradients within the numerical policy, and the inputs as they were."""
        before = [None if t is None else t.clone() for t in tensors]
        with place.use():
            found = gradients(self.ours, tensors, grad_outputs, **options)
        assert all(t is None or torch.equal(t, copy) for t, copy in zip(tensors, before, strict=True))
        expected = self.oracle(tensors, grad_outputs, **options)
        theirs = gradients(self.theirs, tensors, grad_outputs, **options)
        outputs, grads = self.result_names
        names = [*outputs, *(name for name, t in zip(grads, tensors, strict=True) if t is not None)]
        sizes = self.sizes_of_sums(tensors, dict(zip(names, expected, strict=True)), **options)
        for name, mine, right, other in zip(names, found, expected, theirs, strict=True):
            assert mine.dtype == tensors[0].dtype
            size = sizes.get(name)
            assert_within_policy(mine, right, other, what=f"{what} {options} {name}", magnitude=size)
        return found

    def size_of_slope(self, output):
        """How many times as large as itself the terms of the activation's slope are, where it is computed from output."""
        return 1

    def sizes_of_sums(self, tensors, expected, lengths=None, reverse=False):
        """{name: sum of the absolute values of the terms}, for gradients whose few terms may cancel."""
        _, weight_hh, _, h0, *_ = tensors
        output = expected["output"].abs()
        grad_gates = expected["grad_gates_input"].abs() * self.size_of_slope(output)
        last = torch.full(h0.shape[:1], len(output), device=h0.device) if lengths is None else lengths
        first = grad_gates[last - 1, torch.arange(len(last), device=h0.device)] if reverse else grad_gates[0]
        states = torch.cat([output, h0[None].double().abs()]).flatten(0, 1)
        return {
            "grad_gates_input": grad_gates,
            "grad_h0": first @ weight_hh.double().abs(),
            "grad_weight_hh": grad_gates.flatten(0, 1).sum(0)[:, None] * states.amax(0),
            "grad_bias_hh": grad_gates.sum((0, 1)),
        }

    def lengths(self, place, length, batch):
        return torch.randint(1, length + 1, (batch,), device=place.device)

    # ---- values ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (4, 7, 33), (5, 3, 70), (2, 19, 18)])
    def test_matches_oracle(self, place, shape):
        if place.slow:
            shape = tuple(min(size, most) for size, most in zip(shape, (2, 19, 34), strict=True))
        length, batch, _ = shape
        for dtype in place.dtypes:
            for reverse in (False, True):
                tensors, grads = self.draw(place, *shape, dtype)
                self.check(place, tensors, grads, f"{shape} {dtype}", reverse=reverse)
                if length > 1:
                    lengths = self.lengths(place, length, batch)
                    self.check(place, tensors, grads, f"{shape} {dtype}", reverse=reverse, lengths=lengths)
                if place.slow:
                    break

    @pytest.mark.slow_when_interpreted
    @given(
        length=st.integers(1, 6), batch=st.integers(1, 15), hidden=st.integers(1, 40), bias=st.booleans(),
        reverse=st.booleans(), packed=st.booleans(), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_any_shape(self, place, length, batch, hidden, bias, reverse, packed, seed):
        if place.slow:
            length, hidden = min(length, 2), min(hidden, 20)
        torch.manual_seed(seed)
        tensors, grads = self.draw(place, length, batch, hidden, bias=bias)
        lengths = self.lengths(place, length, batch) if packed else None
        self.check(place, tensors, grads, reverse=reverse, lengths=lengths)

    def test_many_units_and_sequences(self, place):
        if place.slow:
            pytest.skip("interpreted: several blocks are among the shapes above")
        for shape in ((3, 2, 300), (2, 90, 131)):
            self.check(place, *self.draw(place, *shape), f"{shape}")

    def test_any_layout(self, place):
        tensors, grads = self.draw(place, 3, 4, 21)
        two = lambda t: torch.stack([t, t], -1)[..., 0]  # noqa: E731
        for arrange in (lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), two, lambda t: t.flip(0)):
            arranged = [arrange(t) if t.ndim > 1 else two(t) for t in tensors]
            self.check(place, arranged, [arrange(g) for g in grads])
        self.check(place, tensors, [g[..., :1].expand(g.shape) for g in grads])
        self.check(place, [t[:1].expand(t.shape) for t in tensors], [g[:1].expand(g.shape) for g in grads])

    def test_saturated_gates(self, place):
        for dtype in place.dtypes:
            tensors, grads = self.draw(place, 2, 3, 9, dtype)
            tensors[0] *= 60
            self.check(place, tensors, grads, str(dtype))

    def test_what_lies_beyond_a_sequence_changes_nothing(self, place):
        tensors, grads = self.draw(place, 4, 5, 6)
        lengths = torch.tensor([0, 2, 4, 1, 3], device=place.device)
        beyond = torch.arange(4, device=place.device)[:, None] >= lengths
        for reverse in (False, True):
            spoiled = [tensors[0].masked_fill(beyond[:, :, None], float("nan")), *tensors[1:]]
            with place.use():
                found = gradients(self.ours, spoiled, grads, lengths=lengths, reverse=reverse)
            expected = self.oracle(tensors, grads, lengths=lengths, reverse=reverse)
            for mine, right in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine.cpu(), right.cpu(), rtol=1e-4, atol=1e-5)
            count = len(self.states)
            output, finals, grad_input, initial = found[0], found[1 : 1 + count], found[1 + count], found[-count:]
            assert (output[beyond] == 0).all()
            assert (grad_input[beyond] == 0).all()
            for final, state, grad, grad_final in zip(finals, tensors[3:], initial, grads[1:], strict=True):
                assert torch.equal(final[0], state[0])  # the sequence without any time
                assert torch.equal(grad[0], grad_final[0])

    def test_each_sequence_is_computed_as_if_alone(self, place):
        tensors, _ = self.draw(place, 5, 3, 8)
        lengths = torch.tensor([5, 2, 3], device=place.device)
        for reverse in (False, True):
            with place.use():
                output, *finals = self.ours(*tensors, lengths=lengths, reverse=reverse)
                for row, length in enumerate(lengths.tolist()):
                    alone = [
                        tensors[0][:length, row : row + 1],
                        *tensors[1:3],
                        *(t[row : row + 1] for t in tensors[3:]),
                    ]
                    right, *right_finals = self.ours(*alone, reverse=reverse)
                    torch.testing.assert_close(output[:length, row], right[:, 0])
                    for final, expected in zip(finals, right_finals, strict=True):
                        torch.testing.assert_close(final[row], expected[0])

    def test_no_sequences(self, place):
        tensors, grads = self.draw(place, 3, 0, 5)
        with place.use():
            output, *rest = gradients(self.ours, tensors, grads)
        assert output.shape == (3, 0, 5)
        assert (rest[len(self.states) + 1] == 0).all()  # grad_weight_hh

    def test_absent_states_are_zeros(self, place):
        (gates_input, weight_hh, bias_hh, *states), _ = self.draw(place, 2, 3, 4)
        with place.use():
            found = self.ours(gates_input, weight_hh, bias_hh)
            right = self.ours(gates_input, weight_hh, bias_hh, *(torch.zeros_like(state) for state in states))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))

    # ---- how it runs -------------------------------------------------------------------------------------------------

    def test_fewer_threads_give_the_same_bits(self):
        before = torch.get_num_threads()
        for shape in ((4, 1, 530), (3, 40, 70), (9, 5, 17)):
            tensors, grads = self.draw(_Here, *shape)
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                with bigkern.use_backend("cpu"):
                    results.append(gradients(self.ours, tensors, grads))
            torch.set_num_threads(before)
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_first_and_second_derivatives(self, place):
        if torch.float64 not in place.dtypes:
            pytest.skip("float64 is left to PyTorch there")
        for lengths, reverse, bias in ((None, False, True), (torch.tensor([2, 1]), True, False)):
            tensors, _ = self.draw(place, 2, 2, 2, torch.float64, bias)
            tensors = [None if t is None else t.requires_grad_() for t in tensors]
            call = lambda *tensors: self.ours(*tensors, lengths=lengths, reverse=reverse)  # noqa: B023, E731
            with place.use():
                assert torch.autograd.gradcheck(call, tensors)
                assert torch.autograd.gradgradcheck(call, tensors)

    def test_only_what_requires_grad_gets_one(self, place):
        tensors, grads = self.draw(place, 2, 3, 5)
        everything = gradients(self.ours, tensors, grads)[1 + len(self.states) :]
        for wanted in range(len(tensors)):
            leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            with place.use():
                output, *_ = self.ours(*leaves)
                assert output.requires_grad
                torch.autograd.backward([output, *_], grads)
            torch.testing.assert_close(leaves[wanted].grad, everything[wanted])
            assert all(t.grad is None for i, t in enumerate(leaves) if i != wanted)
        with place.use():
            assert not self.ours(*tensors)[0].requires_grad

    def test_one_output_may_go_unused(self, place):
        tensors, grads = self.draw(place, 2, 3, 5)
        for used in range(1 + len(self.states)):
            only = lambda *tensors: (self.ours(*tensors)[used],)  # noqa: B023, E731
            zeros = [g if i == used else torch.zeros_like(g) for i, g in enumerate(grads)]
            with place.use():
                found = gradients(only, tensors, [grads[used]])[1:]
                right = gradients(self.ours, tensors, zeros)[1 + len(self.states) :]
            for mine, expected in zip(found, right, strict=True):
                torch.testing.assert_close(mine, expected)

    def test_registration_is_complete(self):
        module = importlib.import_module(f"bigkern.ops.{self.name}")
        forward, backward = (getattr(module, f"{self.name}_{which}") for which in ("forward", "backward"))
        tensors, grads = self.draw(_Here, 3, 2, 4)
        leaves = [t.requires_grad_() for t in tensors]
        torch.library.opcheck(forward.op, self.kernel_arguments(leaves, None))
        lengths = torch.tensor([3, 1])
        outputs = [t.detach() for t in forward(*self.kernel_arguments(tensors, lengths))]
        torch.library.opcheck(backward.op, self.backward_arguments(grads, tensors, outputs, lengths))

    @bigkern.use_backend("cpu")  # on auto, small products are PyTorch's own in eager mode
    def test_compiled_module_gives_the_same_numbers(self):
        options = {"bidirectional": True, "batch_first": True}
        module = getattr(bigkern.nn, self.module)(3, 5, **options, **self.module_options)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((2, 4, 3), (3, 6, 3)):
            results = []
            for function in (compiled, module):
                input = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
                output, _ = function(input)
                results.append([output.detach(), *torch.autograd.grad(output.sum(), [input, *module.parameters()])])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_autocast_computes_in_lower_precision(self, place):
        tensors, grads = self.draw(place, 3, 2, 8)
        with place.use(), torch.autocast(place.device, torch.bfloat16):
            found = gradients(self.ours, tensors, grads)
        low = [t.to(torch.bfloat16) for t in tensors]
        with place.use():
            expected = gradients(self.ours, low, grads)
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right.to(mine.dtype))
        assert found[0].dtype == torch.bfloat16
        assert found[-1].dtype == torch.float32

    # ---- layers ------------------------------------------------------------------------------------------------------

    def modules(self, input_size=4, hidden_size=6, **options):
        """(ours, torch's) with the same parameters."""
        options = {**self.module_options, **options}
        ours, theirs = (getattr(m, self.module)(input_size, hidden_size, **options) for m in (bigkern.nn, torch.nn))
        ours.load_state_dict(theirs.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert repr(ours) == repr(theirs)
        return ours, theirs

    def hidden_states(self, *shape):
        states = tuple(torch.randn(*shape) for _ in self.states)
        return states if len(states) > 1 else states[0]

    @pytest.mark.parametrize(
        "options",
        [{}, {"num_layers": 3}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "bias": False}],
        ids=str,
    )
    def test_module_is_torchs(self, options):
        for batch_first in (False, True):
            ours, theirs = self.modules(batch_first=batch_first, **options)
            count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
            cases = [
                (torch.randn(5, 3, 4), None),
                (torch.randn(5, 3, 4), self.hidden_states(count, 5 if batch_first else 3, 6)),
                (torch.randn(5, 4), None),
                (torch.randn(5, 4), self.hidden_states(count, 6)),
                (pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([2, 5, 3]), enforce_sorted=False), None),
                (
                    pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([2, 5, 3]), enforce_sorted=False),
                    self.hidden_states(count, 3, 6),
                ),
                (pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([5, 3, 1])), None),
            ]
            for input, hidden in cases:
                results = []
                for module in (ours, theirs):
                    output, final = module(input, hidden)
                    data = output if isinstance(output, torch.Tensor) else output.data
                    grads = torch.autograd.grad(data.sin().sum(), list(module.parameters()))
                    results.append([output, final, grads])
                torch.testing.assert_close(*results)

    def test_dropout_between_layers_is_torchs(self):
        ours, theirs = self.modules(num_layers=3, dropout=0.5)
        input, results = torch.randn(5, 3, 4), []
        for module in (ours, theirs):
            torch.manual_seed(3)
            results.append(module(input))
        torch.testing.assert_close(*results)
        torch.testing.assert_close(ours.eval()(input), theirs.eval()(input))

    def test_functional_form_takes_torchs_arguments(self):
        _, theirs = self.modules(num_layers=2, bidirectional=True)
        name = self.torch_layers().__name__
        hidden, input = self.hidden_states(4, 3, 6), torch.randn(5, 3, 4)
        arguments = (input, hidden, theirs._flat_weights, True, 2, 0.0, False, True, False)
        found, right = getattr(bigkern.functional, name)(*arguments), self.torch_layers()(*arguments)
        torch.testing.assert_close(found, right)
        lengths = torch.tensor([2, 5, 1])
        output, *finals = getattr(bigkern.functional, name)(*arguments, lengths=lengths)
        packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
        right, right_finals = theirs(packed, hidden)
        torch.testing.assert_close(output, pad_packed_sequence(right)[0])
        torch.testing.assert_close(tuple(finals) if len(finals) > 1 else finals[0], right_finals)

    def test_module_refuses_what_torchs_refuses(self):
        ours, theirs = self.modules()
        for input, hidden in (
            (torch.randn(5, 3, 7), None),
            (torch.randn(5), None),
            (torch.randn(5, 3, 4).double(), None),
            (torch.randn(5, 3, 4), self.hidden_states(2, 3, 6)),
        ):
            errors = []
            for module in (ours, theirs):
                with pytest.raises((ValueError, RuntimeError)) as caught:
                    module(input, hidden)
                errors.append(type(caught.value))
            assert errors[0] is errors[1]

    def test_signatures_are_torchs(self):
        ours, theirs = (inspect.signature(getattr(m, self.module).forward) for m in (bigkern.nn, torch.nn))
        assert list(ours.parameters) == list(theirs.parameters)

    # ---- errors ------------------------------------------------------------------------------------------------------

    def test_errors_say_what_is_wrong(self):
        (gates_input, weight_hh, bias_hh, *states), _ = self.draw(_Here, 2, 3, 4)
        width, many = 4 * self.num_gates, f"{self.num_gates} * hidden" if self.num_gates > 1 else "hidden"
        call = lambda *tensors, **options: self.ours(*tensors, **options)  # noqa: E731
        for arguments, options, error, message in [
            ((gates_input, weight_hh[:, :3]), {}, ValueError, f"weight_hh must be [{many}, hidden], got shape ({width}, 3)"),
            ((gates_input[0], weight_hh), {}, ValueError, f"gates_input must be [length, batch, {width}], got shape (3, {width})"),
            ((gates_input[:0], weight_hh), {}, ValueError, "expected sequence length to be larger than 0"),
            ((gates_input.long(), weight_hh), {}, TypeError, "gates_input must be floating, got torch.int64"),
            ((gates_input, weight_hh.double()), {}, TypeError, "weight_hh has dtype torch.float64, gates_input has torch.float32"),
            ((gates_input, weight_hh, bias_hh[:2]), {}, ValueError, f"bias_hh must have shape ({width},), got (2,)"),
            ((gates_input, weight_hh, bias_hh, states[0][:1]), {}, ValueError, "h0 must have shape (3, 4), got (1, 4)"),
            ((gates_input, weight_hh, bias_hh.to("meta")), {}, ValueError, "bias_hh is on meta, gates_input on cpu"),
            ((gates_input, weight_hh), {"lengths": torch.ones(3)}, TypeError, "lengths must be int64, got torch.float32"),
            ((gates_input, weight_hh), {"lengths": torch.ones(2).long()}, ValueError, "lengths must have shape (3,), got (2,)"),
        ]:  # fmt: skip
            with pytest.raises(error) as caught:
                call(*arguments, **options)
            assert str(caught.value) == f"{self.name}: {message}"

    # ---- the oracle --------------------------------------------------------------------------------------------------

    def test_the_oracles_gradient_is_that_of_its_output(self):
        for reverse, lengths in ((False, None), (True, torch.tensor([3, 1]))):
            tensors, grads = self.draw(_Here, 3, 2, 2, torch.float64)
            found = self.oracle(tensors, grads, lengths=lengths, reverse=reverse)[1 + len(self.states) :]

            def total(moved, lengths=lengths, reverse=reverse, grads=grads):
                with bigkern.use_backend("reference"):
                    outputs = self.ours(*moved, lengths=lengths, reverse=reverse)
                return sum((o * g).sum() for o, g in zip(outputs, grads, strict=True)).item()

            for which, tensor in enumerate(tensors):
                numeric = np.zeros(tensor.shape)
                for i in np.ndindex(numeric.shape):
                    ends = []
                    for step in (1e-6, -1e-6):
                        moved = [t.clone() for t in tensors]
                        moved[which][i] += step
                        ends.append(total(moved))
                    numeric[i] = (ends[0] - ends[1]) / 2e-6
                assert max_error(to_numpy(found[which]), numeric) < 1e-7


class _Here:
    device = "cpu"
