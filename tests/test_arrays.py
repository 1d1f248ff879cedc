"""Arrays of other libraries as arguments of the public ops."""

import inspect

import numpy as np
import pytest
import torch

import bigkern

# They change tensors in place, most of them lists of tensors.
IN_PLACE = ("adagrad", "adam", "cache_append", "grad_norm", "rmsprop", "sgd")


class Foreign:
    """What every array library has: the two methods of DLPack, and nothing that torch knows otherwise."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def calls():
    """{op: (positional arguments, keyword arguments)}"""
    generator = np.random.default_rng(0)

    def floats(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    query, key, value = floats(2, 3, 5, 8), floats(2, 3, 7, 8), floats(2, 3, 7, 8)
    numbers = generator.integers(-128, 128, (6, 8)).astype(np.int8)
    lengths = (np.array([0, 3, 7], np.int32), np.array([0, 3, 7], np.int32))
    return {
        "attention": ((query, key, value), {"attn_mask": generator.random((5, 7)) < 0.8}),
        "attention_with_lse": ((query, key, value), {"is_causal": True}),
        "conv2d": ((floats(2, 3, 5, 6), floats(4, 3, 3, 3)), {"bias": floats(4), "padding": 1}),
        "conv2d_act": ((floats(2, 3, 5, 6), floats(4, 3, 3, 3)), {"bias": floats(4)}),
        "conv_transpose2d": ((floats(2, 3, 5, 6), floats(3, 4, 3, 3)), {"bias": floats(4), "stride": 2}),
        "cross_entropy": ((floats(4, 9), np.arange(4)), {"weight": floats(9) ** 2}),
        "dequantize": ((numbers, floats(6) ** 2), {"axis": 0, "dtype": torch.float16}),
        "int8_linear": ((floats(3, 8), numbers, floats(6) ** 2), {"bias": floats(6), "activation": "gelu"}),
        "linear_act": ((floats(3, 8), floats(6, 8)), {"bias": floats(6)}),
        "quantize": ((floats(4, 9)[:, ::2],), {"axis": 0}),
        "layer_norm": ((floats(4, 9), (9,), floats(9)), {"bias": floats(9)}),
        "rms_norm": ((floats(4, 9), (9,)), {"weight": floats(9)}),
        "add_layer_norm": ((floats(4, 9), floats(4, 9), (9,)), {"weight": floats(9)}),
        "add_layer_norm_with_sum": ((floats(4, 9), floats(4, 9), (9,)), {"bias": floats(9)}),
        "adaptive_avg_pool2d": ((floats(2, 3, 7, 6), (3, 2)), {}),
        "attention_decode": (
            (floats(2, 3, 1, 8), floats(2, 3, 9, 8), floats(2, 3, 9, 8), np.array([9, 4], np.int32)),
            {},
        ),
        "attention_decode_with_lse": (
            (floats(2, 3, 1, 8), floats(2, 3, 9, 8), floats(2, 3, 9, 8), np.array([9, 4], np.int32)),
            {},
        ),
        "attention_varlen": ((floats(7, 3, 8), floats(7, 3, 8), floats(7, 3, 8), *lengths), {"is_causal": True}),
        "attention_varlen_with_lse": ((floats(7, 3, 8), floats(7, 3, 8), floats(7, 3, 8), *lengths), {}),
        "avg_pool2d": ((floats(2, 3, 7, 6), 2), {"padding": 1}),
        "batch_norm_act": ((floats(4, 3, 5), floats(3), floats(3) ** 2, floats(3)), {"residual": floats(4, 3, 5)}),
        "binary_cross_entropy_with_logits": (
            (floats(4, 9), generator.random((4, 9), np.float32)),
            {"pos_weight": floats(9)},
        ),
        "dequantize_weight": ((numbers, floats(6, 2) ** 2), {"dtype": torch.float16}),
        "distillation_loss": ((floats(4, 9), floats(4, 9)), {"temperature": 2.0}),
        "embedding": ((np.array([[1, 0], [3, 3]]), floats(5, 8)), {"padding_idx": 0}),
        "embedding_bag": ((np.array([1, 0, 3]), floats(5, 8)), {"offsets": np.array([0, 2])}),
        "embedding_layer_norm": (
            (np.array([[1, 0]]), floats(5, 8), floats(4, 8), floats(2, 8), floats(8), floats(8)),
            {"token_type_ids": np.array([[0, 1]])},
        ),
        "gated_act": ((floats(4, 9),), {"up": floats(4, 9), "activation": "gelu"}),
        "geglu": ((floats(4, 10),), {}),
        "group_norm": ((floats(2, 6, 5), 3), {"weight": floats(6), "bias": floats(6)}),
        "kl_div": ((floats(4, 9), generator.random((4, 9), np.float32)), {"reduction": "batchmean"}),
        "linear_cross_entropy": ((floats(4, 9), floats(6, 9), np.arange(4)), {"linear_bias": floats(6)}),
        "max_pool2d": ((floats(2, 3, 7, 6), 2), {"return_indices": True}),
        "mse_loss": ((floats(4, 9), floats(4, 9)), {}),
        "quantize_weight": ((floats(4, 16),), {"group_size": 8}),
        "rotary_embedding": ((floats(2, 3, 5, 8), floats(5, 4), floats(5, 4)), {}),
        "swiglu": ((floats(4, 9), floats(4, 9)), {}),
        "weight_only_linear": ((floats(3, 8), numbers, floats(6, 2) ** 2), {"bias": floats(6)}),
        "gru": ((floats(4, 2, 15), floats(15, 5)), {"bias_hh": floats(15), "lengths": np.array([4, 2])}),
        "lstm": ((floats(4, 2, 20), floats(20, 5)), {"bias_hh": floats(20), "c0": floats(2, 5)}),
        "rnn": ((floats(4, 2, 5), floats(5, 5)), {"h0": floats(2, 5), "nonlinearity": "relu"}),
    }


def mapped(function, args, kwargs):
    convert = lambda value: function(value) if isinstance(value, np.ndarray) else value  # noqa: E731
    return [convert(arg) for arg in args], {name: convert(value) for name, value in kwargs.items()}


@pytest.mark.parametrize("name", sorted(calls()))
@pytest.mark.parametrize("library", [np.asarray, Foreign])
def test_ops_take_arrays_of_other_libraries_and_give_tensors(name, library):
    args, kwargs = calls()[name]
    tensor_args, tensor_kwargs = mapped(torch.from_numpy, args, kwargs)
    array_args, array_kwargs = mapped(library, args, kwargs)
    op = getattr(bigkern, name)
    expected, results = op(*tensor_args, **tensor_kwargs), op(*array_args, **array_kwargs)
    if not isinstance(expected, tuple):
        expected, results = (expected,), (results,)
    for tensor, result in zip(expected, results, strict=True):
        assert type(result) is type(tensor)
        assert result is None or torch.equal(result, tensor)


def test_every_public_op_takes_arrays():
    public = {name for name in bigkern.__all__ if inspect.isfunction(getattr(bigkern, name))}
    assert public - {"explain", "use_backend", *IN_PLACE} == set(calls())


def test_arguments_may_all_be_named():
    x = np.ones((2, 3), np.float32)
    assert bigkern.linear_act(input=x, weight=x).tolist() == [[3, 3], [3, 3]]


def test_what_is_no_array_is_the_ops_own_error():
    with pytest.raises(AttributeError, match="'list' object has no attribute 'dtype'"):
        bigkern.quantize([1.0, 2.0])
