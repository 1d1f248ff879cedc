"""The oracle on CuPy arrays: CuPy in, CuPy out, the same numbers. Without a GPU on the stand-in of strict_arrays.py, which
refuses what CuPy refuses; with one on CuPy itself too."""

import importlib
import inspect

import numpy as np
import pytest
import torch

from bigkern import dispatch, verify
from bigkern.backends import reference
from bigkern.models.binary_classifier import BinaryClassifier
from bigkern.models.gpt import GPT, MODERN, GPTConfig
from bigkern.models.recommender import ClickNetwork, MatrixFactorization
from bigkern.models.vit import ViT, ViTConfig
from bigkern.reference.models import binary_classifier, gpt, mlp, recommender, vit
from bigkern.reference.philox import dropout_keep
from bigkern.registration import KERNELS
from tests import strict_arrays


def cupy_unavailable():
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if importlib.util.find_spec("cupy") else "needs CuPy"


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param("cupy", marks=pytest.mark.skipif(cupy_unavailable() is not None, reason=str(cupy_unavailable()))),
    ]
)
def xp(request, monkeypatch):
    return strict_arrays.install(monkeypatch) if request.param == "stand-in" else importlib.import_module("cupy")


def copies(xp, value):
    """An array as one of xp's, each of a list or dict, anything else as it is; nothing shares memory."""
    if isinstance(value, dict):
        return {name: copies(xp, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copies(xp, item) for item in value]
    return xp.asarray(value.copy()) if isinstance(value, np.ndarray) else value


def assert_same(xp, found, expected):
    if isinstance(expected, dict):
        assert_same(xp, list(found.items()), list(expected.items()))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(xp, one, other)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert isinstance(found, xp.ndarray)
        assert found.dtype == expected.dtype
        # CuPy adds in another order.
        rtol = 0 if isinstance(found, strict_arrays.StrictArray) or found.dtype.kind in "iub" else 1e-9
        largest = np.max(np.abs(expected), initial=0, where=np.isfinite(expected))
        np.testing.assert_allclose(found.get(), expected, rtol=rtol, atol=rtol * largest, strict=True)
    else:
        assert found == expected


def assert_runs(xp, function, arguments):
    """`function` gives on xp's arrays what it gives on NumPy's, and changes its arguments in the same way."""
    ours, theirs = copies(np, arguments), copies(xp, arguments)
    assert_same(xp, function(*theirs), function(*ours))
    assert_same(xp, theirs, ours)


def test_every_reference_function(xp, monkeypatch):
    run_as_before, ran = reference.run, set()

    def run(kernel, args):
        function = getattr(importlib.import_module(f"bigkern.reference.{kernel.module}"), kernel.name)
        assert_runs(xp, function, [reference.to_numpy(arg) for arg in kernel.launch_arguments(args)])
        ran.add(kernel.name)
        return run_as_before(kernel, args)

    monkeypatch.setattr(reference, "run", run)
    for case in verify.CASES:
        exact = {
            name: t.double() if t.is_floating_point() else t
            for name, t in verify.draw(case, torch.float32, "cpu").items()
        }
        with dispatch.use_backend("reference"):
            verify.outcome(case.bigkern, exact, case.gradients)
    assert ran == set(KERNELS)


def _rng(*shape):
    return np.random.default_rng(3).standard_normal(shape)


# Name -> (the op, whose forward pass it is unless another function is named; its arrays; the rest of its arguments).
EDGES = {
    "attention of no keys": ("attention", (_rng(1, 2, 3, 4), _rng(1, 2, 0, 4), _rng(1, 2, 0, 5)), (None, None, 0.0, True, 0.5, None, -1, -1)),
    "attention, a fully masked row": (
        "attention",
        (_rng(1, 2, 3, 4), _rng(1, 1, 2, 4), _rng(1, 1, 2, 5)),
        (np.array([[True, False], [False, False], [True, True]]), None, 0.0, False, 0.5, None, -1, -1),
    ),
    "attention, dropout 1": (
        "attention",
        (_rng(1, 1, 3, 4), _rng(1, 1, 5, 4), _rng(1, 1, 5, 4)),
        (None, np.array([2**40 + 3, 7]), 0.999, False, 0.5, None, -1, -1),
    ),
    "attention, the gradient of lse": (
        "attention.attention_backward",
        (_rng(1, 2, 3, 5), _rng(1, 2, 3), _rng(1, 2, 3, 4), _rng(1, 1, 3, 4), _rng(1, 1, 3, 5)),
        (None, None, None, None, 0.0, True, 0.5, None, -1, -1, False),
    ),
    "attention_decode, slopes and a window that hides every key of one query": (
        "attention_decode",
        (_rng(2, 2, 3, 4), _rng(2, 1, 6, 4), _rng(2, 1, 6, 5), np.array([2, 6], np.int32)),
        (None, None, None, np.array([[0.5, 0.25], [0.125, 1.0]]), 0.5, 2, 0),
    ),
    "attention_decode, rows that become int8": (
        "attention_decode.cache_append_step",
        ([np.zeros((2, 1, 4, 3), np.int8) for _ in "kv"], [np.zeros((2, 1, 4), np.float32) for _ in "kv"]),
        (
            np.array([[[[0.0, 0, 0], [1, -2, 3]]], [[[np.nan, 1, 2], [np.inf, 1, 2]]]]),
            _rng(2, 1, 2, 3),
            np.array([1, 2], np.int32),
            None,
        ),
    ),
    "cross entropy, all ignored": ("cross_entropy", (_rng(3, 4, 1), np.full((3, 1), -100)), (None, -100, "mean", 0.1)),
    "cross entropy, a weight of 0 and ignored class": (
        "cross_entropy",
        (_rng(3, 4, 2), np.array([[0, 1], [2, 3], [1, 1]])),
        (np.array([1.0, np.inf, 0.0, 2.0]), 1, "sum", 0.0),
    ),
    "cross entropy of no classes": ("cross_entropy", (_rng(3, 0, 1), np.full((3, 1), -100)), (None, -100, "none", 0.0)),
    "quantize, infinite and NaN": ("quantize", (np.array([[[1.0, np.inf], [np.nan, 2.0], [-3.0, 0.5]]]),), (False,)),
    "quantize nothing": ("quantize", (_rng(2, 3, 0),), (True,)),
    "embedding_layer_norm, tables without gradients": (
        "embedding_layer_norm.embedding_layer_norm_backward",
        (_rng(2, 3), np.array([0, 1]), _rng(2, 3), np.array([1, 1]), _rng(2, 3), np.array([0, 0]), _rng(1, 3), _rng(3)),
        (_rng(3), _rng(2), np.array([0.5, 2.0]), np.array([5, 6]), -1, 0.5, False, True, True),
    ),
    "group_norm of nothing": ("group_norm", (_rng(0, 4, 3), _rng(4), _rng(4)), (2, 1e-5)),
    "group_norm of nothing, backward": (
        "group_norm.group_norm_backward",
        (_rng(0, 4, 3), _rng(0, 4, 3), _rng(4), _rng(4), _rng(0, 2), _rng(0, 2)),
        (2, True, True, True),
    ),
    "int8_linear, backward": (
        "int8_linear.int8_linear_backward",
        (_rng(2, 3), _rng(2, 4), np.arange(12, dtype=np.int8).reshape(3, 4) - 6, _rng(3) ** 2, _rng(2, 3)),
        ("gelu",),
    ),
    "lstm that saves no gates": ("lstm", (_rng(3, 2, 8), _rng(8, 2), None, _rng(2, 2), _rng(2, 2)), (None, True, False)),
    "weight_only_linear, backward": (
        "weight_only_linear.weight_only_linear_backward",
        (_rng(2, 3), _rng(2, 4), np.arange(6, dtype=np.uint8).reshape(3, 2) * 40, _rng(3, 2), _rng(3, 2), _rng(2, 3)),
        ("relu",),
    ),
    "rms_norm of no columns": ("rms_norm", (_rng(2, 0),), (None, 1e-5)),
    "grad_norm of nothing": ("grad_norm", ([_rng(0)],), (None, 2.0, 1.0)),
    "grad_norm, largest": ("grad_norm", ([_rng(3), _rng(2, 2)],), (np.array(8.0), float("inf"), 1.0)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", EDGES)
def test_edges(xp, name):
    path, arrays, options = EDGES[name]
    op, _, function = path.partition(".")
    module = importlib.import_module(f"bigkern.reference.{op}")
    assert_runs(xp, getattr(module, function or f"{op}_forward"), [*arrays, *options])


def test_a_target_out_of_bounds_is_refused(xp):
    forward = importlib.import_module("bigkern.reference.cross_entropy").cross_entropy_forward
    logits, target = copies(xp, [_rng(3, 4, 1), np.array([[0], [7], [1]])])
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        forward(logits, target, None, -100, "mean", 0.0)


def test_a_row_that_no_table_has_is_refused(xp):
    forward = importlib.import_module("bigkern.reference.embedding").embedding_forward
    with pytest.raises(IndexError, match="embedding: index 4 is out of range for a table of 3 rows"):
        forward(*copies(xp, [np.array([0, 4]), _rng(3, 2)]), None, False)


def test_a_position_beyond_cos_and_sin_is_refused(xp):
    forward = importlib.import_module("bigkern.reference.rotary_embedding").rotary_embedding_forward
    arrays = copies(xp, [_rng(1, 1, 2, 4), _rng(1, 3, 2), _rng(1, 3, 2), np.array([[1, 3]])])
    with pytest.raises(IndexError, match="position 3 is out of range"):
        forward(*arrays, 0, False)


def test_a_cache_that_is_full_is_refused(xp):
    append = importlib.import_module("bigkern.reference.attention_decode").cache_append_step
    caches, new, pages = [_rng(1, 1, 4, 2), _rng(1, 1, 4, 2)], _rng(1, 1, 2, 2), np.array([[0, 7]])
    for seqlen, table, message in ((3, None, "its cache holds 4"), (3, pages, "names a page")):
        with pytest.raises(ValueError, match=message):
            append(*copies(xp, [caches, [], new, new, np.array([seqlen]), table]))


def test_dropout_of_everything_keeps_nothing(xp):
    rng_state = copies(xp, np.array([5, 6]))
    assert not dropout_keep(rng_state, 1.0, 1, 1, 2, 3).get().any()


def _parameters(model):
    return {name: reference.to_numpy(value) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(vocabulary=7, context=5, layers=1, heads=2, width=8),
        GPTConfig(vocabulary=7, context=5, layers=1, heads=2, kv_heads=1, width=8, hidden=6, tied=False, **MODERN),
    ],
    ids=["gpt2", "modern"],
)
def test_gpt(xp, config):
    tokens = np.array([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
    assert_runs(xp, gpt.gpt_loss_and_gradients, [_parameters(GPT(config)), config, tokens, tokens[::-1]])


def test_vit(xp):
    config = ViTConfig(image=4, patch=2, channels=2, classes=3, layers=1, heads=2, width=8, hidden=6)
    arguments = [_parameters(ViT(config)), config, _rng(2, 2, 4, 4), np.array([2, 0])]
    assert_runs(xp, vit.vit_loss_and_gradients, arguments)


def test_recommenders(xp):
    users, items, ratings = np.array([0, 1, 0]), np.array([2, 0, 2]), np.array([3.0, 1.0, 5.0])
    parameters = _parameters(MatrixFactorization(2, 3, rank=2, mean=2.5))
    assert_runs(xp, recommender.factorization_loss_and_gradients, [parameters, users, items, ratings])
    parameters = _parameters(ClickNetwork((2, 3), 2, rank=2, hidden=(4,)))
    categories, clicks = np.array([[0, 2], [1, 1], [0, 0]]), np.array([1.0, 0.0, 1.0])
    assert_runs(
        xp, recommender.click_loss_and_gradients, [parameters, np.array([0, 2]), categories, _rng(3, 2), clicks]
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_binary_classifier(xp, loss):
    arguments = [_parameters(BinaryClassifier(3, (4,))), _rng(2, 3), np.array([1.0, 0.0]), loss]
    assert_runs(xp, binary_classifier.classifier_loss_and_gradients, arguments)


def test_the_perceptron(xp):
    weights, biases = [_rng(5, 4), _rng(3, 5)], [_rng(5), _rng(3)]
    input, target = _rng(7, 4), np.arange(7) % 3
    assert_runs(xp, mlp.mlp_backward, [weights, biases, input, target])
    assert_runs(xp, mlp.mlp_loss, [mlp.mlp_forward(weights, biases, input)[0], target])


# ---- the stand-in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda xp, a: np.asarray(a),
        lambda xp, a: np.exp(a),
        lambda xp, a: np.where(a > 0, a, 0),
        lambda xp, a: a + np.ones(3),
        lambda xp, a: np.ones(3) + a,
        lambda xp, a: xp.where(a > 0, np.ones(3), a),
        lambda xp, a: a.max(0, initial=0),
        lambda xp, a: a.std(),
        lambda xp, a: xp.vectorize(abs),
        lambda xp, a: xp.sqrt(2.0),
        lambda xp, a: xp.zeros(3, like=a),
        lambda xp, a: a[np.array([True, False, True])],
        lambda xp, a: a.astype(np.uint32) >= 2**32,
        lambda xp, a: a.__setitem__(slice(None), np.ones(3)),
    ],
)
def test_the_stand_in_refuses(monkeypatch, forbidden):
    xp = strict_arrays.install(monkeypatch)
    with pytest.raises((TypeError, AttributeError, IndexError, OverflowError)):
        forbidden(xp, xp.asarray(np.arange(3.0)))


def test_the_stand_in_has_nothing_that_cupy_lacks():
    # CuPy's signatures can be read without a GPU.
    cupy = pytest.importorskip("cupy")
    for path, names in strict_arrays.FUNCTIONS.items():
        function = cupy
        for part in path.split("."):
            function = getattr(function, part)
        parameters = list(inspect.signature(function).parameters)
        assert names == "..." or parameters[: len(names.split())] == names.split()
    for name, count in strict_arrays.UFUNCS.items():
        assert getattr(cupy, name).nin == count
    for name in (*strict_arrays.METHODS, *strict_arrays.ATTRIBUTES):
        assert hasattr(cupy.ndarray, name)
    for name, names in strict_arrays.METHODS.items():
        documented = getattr(cupy.ndarray, name).__doc__.partition("(")[2].partition(")")[0]
        parameters = [part.split("=")[0].split()[-1] for part in documented.split(", ")][1:]
        assert names == "..." or parameters[: len(names.split())] == names.split()
    assert callable(importlib.import_module("cupyx.scipy.special").erfc)
