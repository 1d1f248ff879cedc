"""The tests that layer_norm and rms_norm have in common; each op's test file subclasses `NormTests`."""

import importlib
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigkern
from tests.support import assert_within_policy, max_error, to_oracle

NAN, INF = float("nan"), float("inf")
NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


def extended(value):
    """In more digits than float64, so that the oracle's own rounding is out of the way."""
    array = to_oracle(value)
    return array.astype(np.longdouble) if isinstance(array, np.ndarray) else array


def gradients(function, tensors, grad_output, **options):
    """[output, gradient of each tensor that is not None]"""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(*tensors, **options)
    wanted = [t for t in tensors if t is not None]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output.to(output.dtype))]


class NormTests:
    """`name`: the op; `parameters`: how many of weight and bias it takes."""

    name: str
    parameters: int

    @property
    def ours(self):
        return self._as_call(getattr(bigkern, self.name))

    @property
    def theirs(self):
        return self._as_call(getattr(torch.nn.functional, self.name))

    def _as_call(self, function):
        def call(input, *parameters, dims=1, eps=1e-5):
            return function(input, input.shape[input.ndim - dims :], *parameters, eps=eps)

        return call

    @property
    def kernels(self):
        module = importlib.import_module(f"bigkern.ops.{self.name}")
        return getattr(module, f"{self.name}_forward"), getattr(module, f"{self.name}_backward")

    def draw(self, place, shape, dtype=torch.float32, dims=1, scale=1.0, offset=0.0):
        """[input, weight, bias], less what the op does not take."""
        input = torch.randn(shape, device=place.device, dtype=torch.float64) * scale + offset
        parameters = [
            torch.randn(shape[len(shape) - dims :], device=place.device) + 0.5 for _ in range(self.parameters)
        ]
        return [t.to(dtype) for t in (input, *parameters)]

    def oracle(self, tensors, grad_output, dims=1, eps=1e-5):
        """(output and gradients, the size of the terms that cancel in each of them)"""
        forward, backward = self.references()
        input = tensors[0]
        columns = input.shape[input.ndim - dims :].numel()
        rows = extended(input).reshape(-1 if columns else input.shape[: input.ndim - dims].numel(), columns)
        grad = extended(grad_output).reshape(rows.shape)
        parameters = [None if t is None else extended(t).reshape(-1) for t in tensors[1:]]
        output, *statistics = forward(rows, *parameters, eps)
        grads = backward(grad, rows, *parameters, *statistics, *(True,) * (1 + self.parameters))
        with np.errstate(invalid="ignore"):
            terms = np.abs(grad if parameters[0] is None else grad * parameters[0]) * statistics[-1][:, None]
            normalized = np.abs(forward(rows, *(None,) * self.parameters, eps)[0])
            sizes = [None, terms, (np.abs(grad) * normalized).sum(0), np.abs(grad).sum(0)]
        shapes = [input.shape, input.shape, *(input.shape[input.ndim - dims :],) * self.parameters]
        results = [r.reshape(shape) for r, shape in zip((output, *grads), shapes, strict=True)]
        return results, [None if s is None else s.reshape(shape) for s, shape in zip(sizes, shapes, strict=False)]

    def references(self):
        module = importlib.import_module(f"bigkern.reference.{self.name}")
        return getattr(module, f"{self.name}_forward"), getattr(module, f"{self.name}_backward")

    def check(self, place, tensors, what="", grad_output=None, **options):
        """Output and gradients within the numerical policy, and the inputs as they were."""
        before = [None if t is None else t.clone() for t in tensors]
        if grad_output is None:
            grad_output = torch.randn(tensors[0].shape, device=place.device).to(tensors[0].dtype)
        with place.use():
            found = gradients(self.ours, tensors, grad_output, **options)
        for tensor, copy in zip(tensors, before, strict=True):
            assert tensor is None or torch.equal(tensor.nan_to_num(7), copy.nan_to_num(7))
        expected, sizes = self.oracle(tensors, grad_output, **options)
        theirs = gradients(self.theirs, tensors, grad_output, **options)
        names = [n for n, t in zip(NAMES, (tensors[0], *tensors), strict=False) if t is not None]
        kept = [i for i, n in enumerate(NAMES[: 2 + self.parameters]) if n in names]
        for i, mine, other in zip(kept, found, theirs, strict=True):
            assert mine.dtype == tensors[max(i - 1, 0)].dtype
            assert_within_policy(mine, expected[i], other, what=f"{what} {NAMES[i]}", magnitude=sizes[i])
        return found

    # ---- values ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 7), (2, 3, 16), (4, 33), (7, 130), (37, 64), (64,)])
    def test_matches_oracle(self, place, shape):
        for dtype in place.dtypes:
            self.check(place, self.draw(place, shape, dtype), f"{shape} {dtype}")

    def test_several_dimensions_and_absent_parameters(self, place):
        for dims in (1, 2, 3):
            tensors = self.draw(place, (3, 4, 5, 6)[-dims - 1 :], dims=dims)
            self.check(place, tensors, dims=dims)
            for absent in range(1, 1 + self.parameters):
                self.check(place, [None if i == absent else t for i, t in enumerate(tensors)], dims=dims)
            self.check(place, [tensors[0], *(None,) * self.parameters], dims=dims, eps=0.1)

    @pytest.mark.parametrize("shape", [(3, 4096), (2, 4097), (1, 9000), (70, 1030), (2100, 3)])
    def test_sizes_beyond_one_piece_or_block(self, place, shape):
        if place.slow:
            shape = (min(shape[0], 20), min(shape[1], 2051))  # two strips of rows, five blocks of columns
        for dtype in place.dtypes if not place.slow else (torch.float32,):
            self.check(place, self.draw(place, shape, dtype), f"{shape} {dtype}")

    def test_row_of_more_columns_than_any_block(self, place):
        self.check(place, self.draw(place, (2, 5003 if place.slow else 65536 + 5)))

    @given(
        rows=st.integers(0, 40), columns=st.integers(1, 150), present=st.integers(0, 3), seed=st.integers(0, 99),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    )  # fmt: skip
    def test_any_shape(self, place, rows, columns, present, seed, dtype):
        torch.manual_seed(seed)
        input, *parameters = self.draw(place, (rows, columns), dtype)
        parameters = [p if present >> i & 1 else None for i, p in enumerate(parameters)]
        self.check(place, [input, *parameters])

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 4)])
    def test_empty_tensors(self, place, shape):
        tensors = self.draw(place, shape)
        with place.use():
            output, grad_input, *grads = gradients(self.ours, tensors, torch.ones(shape, device=place.device))
        assert output.shape == grad_input.shape == shape
        assert all((grad == 0).all() and grad.shape == shape[-1:] for grad in grads)

    def test_any_layout(self, place):
        input, *parameters = self.draw(place, (6, 5, 8))
        parameters = [torch.stack([p, p], 1)[:, 0] for p in parameters]
        grad_output = torch.randn(6, 5, 8, device=place.device)
        layouts = [
            input.transpose(0, 1).contiguous().transpose(0, 1),
            input.transpose(1, 2).contiguous().transpose(1, 2),
            torch.stack([input, input], -1)[..., 0],
            torch.cat([input, input], 2)[..., 1:9],
            input[:1].expand(6, 5, 8),
            input[..., :1].expand(6, 5, 8),
            input.flip(1),
        ]
        for layout in layouts:
            self.check(place, [layout, *parameters], grad_output=grad_output)
        for layout in (
            grad_output.transpose(1, 2).contiguous().transpose(1, 2),
            grad_output[:1, :1, :1].expand(6, 5, 8),
        ):
            self.check(place, [input, *parameters], grad_output=layout)
        matrix = torch.randn(4100, 3, device=place.device).t()  # columns apart, and more of them than one piece
        self.check(place, [matrix, *(torch.randn(4100, device=place.device) for _ in parameters)])

    # ---- numbers that hurt -------------------------------------------------------------------------------------------

    def test_a_large_common_offset_costs_no_digits(self, place):
        for dtype in (torch.float32, torch.float64):
            if dtype not in place.dtypes:
                continue
            for columns in (64, 1000, 5000):
                tensors = self.draw(place, (4, columns), dtype)
                # Multiples of 2^-9 below 2^14: shifting them is exact.
                noise = (tensors[0] * 512).round() / 512
                self.check(place, [noise + 1e4, *tensors[1:]], f"{columns} columns, offset")
                outlier = noise.clone()
                outlier[:, 0] = 1e4
                self.check(place, [outlier, *tensors[1:]], f"{columns} columns, outlier")

    def test_rows_that_are_constant_or_tiny(self, place):
        input, *parameters = self.draw(place, (6, 100))
        input[0], input[1], input[2] = 3.3, 1e4 + 0.1, 0
        input[3] *= 1e-20
        input[4] *= 1e-6
        self.check(place, [input, *parameters])

    @pytest.mark.parametrize("columns", [37, 4200])
    def test_non_finite_values_stay_in_their_row(self, place, columns):
        input, *parameters = self.draw(place, (8, columns))
        clean = input.clone()
        input[1, 5], input[3, columns - 1], input[5, 0] = NAN, INF, -INF
        input[6, :2] = INF
        grad_output = torch.randn_like(input)
        bad = [1, 3, 5, 6]
        with place.use():
            output, grad_input, *_ = gradients(self.ours, [input, *parameters], grad_output)
            right, right_grad, *_ = gradients(self.ours, [clean, *parameters], grad_output)
        theirs = gradients(self.theirs, [input, *parameters], grad_output)
        good = [row for row in range(8) if row not in bad]
        assert torch.equal(output[good], right[good])
        assert torch.equal(grad_input[good], right_grad[good])
        assert torch.equal(output[bad].isnan(), theirs[0][bad].isnan())
        assert grad_input[bad].isnan().any(1).all()

    # ---- how it runs -------------------------------------------------------------------------------------------------

    @bigkern.use_backend("cpu")  # PyTorch's own, which auto takes for small calls, makes no such promise
    def test_fewer_threads_give_the_same_bits(self):
        before = torch.get_num_threads()
        for shape in ((1, 9001), (3, 70001), (700, 130), (17, 9001)):
            input, *parameters = self.draw(_Here, shape)
            grad_output = torch.randn(shape)
            results = []
            for threads in (1, max(before, 4)):
                torch.set_num_threads(threads)
                results.append(gradients(self.ours, [input, *parameters], grad_output))
            torch.set_num_threads(before)
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_first_and_second_derivatives(self, place):
        if torch.float64 not in place.dtypes:
            pytest.skip("float64 is left to PyTorch there")
        for present in (True, False):
            input, *parameters = self.draw(place, (3, 4), torch.float64)
            tensors = [input, *(p if present else None for p in parameters)]
            tensors = [None if t is None else t.requires_grad_() for t in tensors]
            with place.use():
                assert torch.autograd.gradcheck(self.ours, tensors)
                assert torch.autograd.gradgradcheck(self.ours, tensors)

    def test_only_what_requires_grad_gets_one(self, place):
        input, *parameters = self.draw(place, (40, 6))
        grad_output = torch.randn(40, 6, device=place.device)
        everything = gradients(self.ours, [input, *parameters], grad_output)[1:]
        for wanted in range(1 + self.parameters):
            tensors = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((input, *parameters))]
            with place.use():
                self.ours(*tensors).backward(grad_output)
            torch.testing.assert_close(tensors[wanted].grad, everything[wanted])
            assert all(t.grad is None for i, t in enumerate(tensors) if i != wanted)
        with place.use():
            assert not self.ours(input, *parameters).requires_grad

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_float32_parameters_beside_lower_precision(self, place, dtype):
        input, *parameters = self.draw(place, (20, 33))
        grad_output = torch.randn(20, 33, device=place.device).to(dtype)
        found = self.check(_Mixed(place), [input.to(dtype), *parameters], grad_output=grad_output)
        assert [t.dtype for t in found] == [dtype, dtype, *(torch.float32,) * self.parameters]

    def test_registration_is_complete(self):
        forward, backward = self.kernels
        for present in (True, False):
            input, *parameters = (t.requires_grad_() for t in self.draw(_Here, (3, 6)))
            parameters = parameters if present else [None] * self.parameters
            torch.library.opcheck(forward.op, (input, *parameters, 1e-5))
            _, *statistics = (t.detach() for t in forward(input, *parameters, 1e-5))
            needs = (True, *(present,) * self.parameters)
            grad_output = torch.randn(3, 6, requires_grad=True)
            torch.library.opcheck(backward.op, (grad_output, input, *parameters, *statistics, *needs))

    @bigkern.use_backend("cpu")  # on auto, calls this small are PyTorch's own in eager mode
    def test_compiles_with_dynamic_shapes(self):
        step = lambda *tensors: self.ours(tensors[0] * 2, *tensors[1:]).sin()  # noqa: E731
        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((3, 8), (5, 6), (2, 5, 4), (4, 3, 7)):
            tensors = self.draw(_Here, shape)
            grad_output = torch.randn(shape)
            found, right = (gradients(f, tensors, grad_output) for f in (compiled, step))
            assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_autocast_is_as_in_torch(self, place, dtype):
        if dtype not in place.dtypes:
            pytest.skip("float64 is left to PyTorch there")
        input, *parameters = self.draw(place, (20, 16), dtype)
        if dtype != torch.float64:
            parameters = [p.float() for p in parameters]
        grad_output = torch.randn(20, 16, device=place.device)
        with place.use(), torch.autocast(place.device, torch.bfloat16):
            found = gradients(self.ours, [input, *parameters], grad_output)
        with torch.autocast(place.device, torch.bfloat16):
            theirs = gradients(self.theirs, [input, *parameters], grad_output)
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        for mine, other in zip(found, theirs, strict=True):
            torch.testing.assert_close(mine, other, **tolerance)  # compares dtypes too

    def test_module_takes_torchs_state_dict(self):
        name = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[self.name]
        for options in ({}, {"elementwise_affine": False}, {"eps": 0.1}):
            ours, theirs = (getattr(m, name)((3, 4), **options) for m in (bigkern.nn, torch.nn))
            for parameter in theirs.parameters():
                torch.nn.init.normal_(parameter)
            ours.load_state_dict(theirs.state_dict())
            input = torch.randn(5, 3, 4)
            with bigkern.use_backend("cpu"):
                torch.testing.assert_close(ours(input), theirs(input))
            assert repr(ours) == repr(theirs)
            assert list(ours.state_dict()) == list(theirs.state_dict())

    def test_signature_is_torchs(self):
        ours, theirs = (inspect.signature(getattr(m, self.name)) for m in (bigkern.functional, torch.nn.functional))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]

    def test_the_oracles_gradient_is_that_of_its_output(self):
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(3, 4)), *(rng.normal(size=4) for _ in range(self.parameters))]
        grad_output = rng.normal(size=(3, 4))
        forward, backward = self.references()
        _, *statistics = forward(*arrays, 1e-5)
        grads = backward(grad_output, *arrays, *statistics, *(True,) * (1 + self.parameters))
        for which, array in enumerate(arrays):
            numeric = np.zeros_like(array)
            for i in np.ndindex(array.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = list(arrays)
                    moved[which] = array.copy()
                    moved[which][i] += step
                    ends.append((forward(*moved, 1e-5)[0] * grad_output).sum())
                numeric[i] = (ends[0] - ends[1]) / 2e-6
            assert max_error(grads[which], numeric) < 1e-7


class _Here:
    device = "cpu"


class _Mixed:
    """A place at which PyTorch's own op, which would refuse mixed dtypes on a GPU, runs on the CPU."""

    def __init__(self, place):
        self.device, self.use = place.device, place.use
