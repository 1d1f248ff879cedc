"""A stand-in for CuPy where there is no GPU: arrays over NumPy's that refuse what CuPy refuses.

They do not turn into NumPy arrays by themselves and do not mix with them; the module has only the functions, methods and
parameters that are listed here, all of which CuPy 14 has (test_reference_on_cupy.py compares the list with CuPy's own
signatures where it is installed). Reductions give arrays without dimensions, and a Python integer that an array's dtype
cannot hold is an error.
"""

import math
import operator
import sys
import types

import numpy as np

# Names of positional parameters, and of those that may be left out; `...` takes any number.
FUNCTIONS = {
    "arange": "start stop step dtype",
    "asarray": "a dtype",
    "broadcast_arrays": "...",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max",
    "concatenate": "tup axis",
    "einsum": "...",
    "eye": "N M k dtype",
    "full": "shape fill_value dtype",
    "nan_to_num": "x",
    "ones": "shape dtype",
    "pad": "array pad_width",
    "repeat": "a repeats axis",
    "resize": "a new_shape",
    "split": "ary indices_or_sections axis",
    "stack": "tup axis",
    "tile": "A reps",
    "where": "condition x y",
    "zeros": "shape dtype",
    "zeros_like": "a dtype",
    "linalg.norm": "x ord axis keepdims",
}
# Elementwise functions with their number of operands.
UFUNCS = dict.fromkeys("abs cos exp isfinite isnan log log1p rint sin sqrt tanh".split(), 1)
UFUNCS |= {"maximum": 2, "minimum": 2}
CREATION = ("arange", "asarray", "eye", "full", "ones", "zeros")
METHODS = {
    "any": "axis",
    "argmax": "axis",
    "astype": "dtype",
    "copy": "",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "reshape": "...",
    "squeeze": "axis",
    "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2",
    "transpose": "...",
}
ATTRIBUTES = ("T", "dtype", "ndim", "shape", "size")
BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
COMPARISONS = "eq ne lt le gt ge".split()
NUMBERS = (bool, int, float, np.generic)


class StrictArray:
    __module__ = "cupy"  # what bigkern.reference.array_module looks at
    __array_ufunc__ = None  # NumPy's operators leave the work to ours
    __slots__ = ("_values",)

    def __init__(self, values):
        assert type(values) is np.ndarray
        self._values = values

    def get(self):
        return self._values.copy()

    def tolist(self):
        return self._values.tolist()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __getattr__(self, name):
        raise AttributeError(f"CuPy's ndarray.{name} is not among METHODS or ATTRIBUTES of {__file__}")

    def __getitem__(self, index):
        return _wrap(self._values[_index(index)])

    def __setitem__(self, index, value):
        self._values[_index(index)] = self._operand(value)

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return map(_wrap, self._values)

    def __format__(self, spec):
        return format(self._values, spec)

    def _operand(self, value):
        if type(value) is StrictArray:
            return value._values
        if not isinstance(value, NUMBERS):
            raise TypeError(f"Unsupported type {type(value)}")
        if type(value) is int and self._values.dtype.kind in "iu":
            info = np.iinfo(self._values.dtype)
            if not info.min <= value <= info.max:
                raise OverflowError(f"Python integer {value} out of bounds for {self._values.dtype}")
        return value


def _wrap(result):
    if isinstance(result, (tuple, list)):
        return type(result)(map(_wrap, result))
    return StrictArray(np.asarray(result))


def _unwrap(value):
    if type(value) is StrictArray:
        return value._values
    if isinstance(value, (tuple, list)):
        return type(value)(map(_unwrap, value))
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _index(index):
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, (int, slice, StrictArray))):
            raise IndexError(f"Unsupported index {type(part)}")
    return _unwrap(index)


def _operator(name, in_place):
    def apply(self, *others):
        result = getattr(self._values, name)(*map(self._operand, others))
        if result is NotImplemented:
            raise TypeError(f"{name} of {self._values.dtype} with {others}")
        return self if in_place else _wrap(result)

    apply.__name__ = name
    return apply


def _checked(name, function, parameters, convert=_unwrap):
    """`function` of NumPy with CuPy's parameters only"""
    names = parameters.split()

    def call(*args, **kwargs):
        if names != ["..."] and (len(args) > len(names) or not kwargs.keys() <= set(names)):
            raise TypeError(f"CuPy's {name} takes {names}, got {len(args)} arguments and {list(kwargs)}")
        return _wrap(function(*map(convert, args), **{key: convert(value) for key, value in kwargs.items()}))

    return call


def _with_an_array(name, call):
    def checked(*args):
        arrays = [arg for arg in args if type(arg) is StrictArray]
        if not arrays:
            raise TypeError(f"CuPy's {name} of {args}: none is an array")
        for arg in args:
            arrays[0]._operand(arg)
        return call(*args)

    return checked


def _give_operators():
    names = [f"__{prefix}{name}__" for name in BINARY for prefix in ("", "r", "i")]
    names += [f"__{name}__" for name in (*COMPARISONS, "neg", "pos", "abs", "invert")]
    for name in names:
        setattr(StrictArray, name, _operator(name, in_place=name.startswith("__i") and name != "__invert__"))
    for name in ("bool", "int", "float", "index"):
        convert = getattr(operator, name, None) or getattr(__import__("builtins"), name)
        setattr(StrictArray, f"__{name}__", lambda self, convert=convert: convert(self._values))
    for name in ATTRIBUTES:
        get = operator.attrgetter(f"_values.{name}")
        wrapped = property(lambda self, get=get: _wrap(get(self))) if name == "T" else property(get)
        setattr(StrictArray, name, wrapped)
    for name, parameters in METHODS.items():
        setattr(StrictArray, name, _method(name, parameters))


def _method(name, parameters):
    def method(self, *args, **kwargs):
        return _checked(f"ndarray.{name}", getattr(self._values, name), parameters)(*args, **kwargs)

    return method


_give_operators()


class StrictModule(types.ModuleType):
    def __getattr__(self, name):
        raise AttributeError(f"{self.__name__}.{name} is not among FUNCTIONS or UFUNCS of {__file__}")


def _erfc(x):
    return np.vectorize(math.erfc, otypes=[float])(x)


def modules():
    """Stand-ins for cupy and what is used of cupyx, by name"""
    found = {
        name: StrictModule(name) for name in ("cupy", "cupy.linalg", "cupyx", "cupyx.scipy", "cupyx.scipy.special")
    }
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, module)
    for path, parameters in FUNCTIONS.items():
        function = operator.attrgetter(path)(np)
        # asarray is the way from NumPy to CuPy: it alone takes NumPy's arrays.
        convert = (
            (lambda value: value._values if type(value) is StrictArray else value) if path == "asarray" else _unwrap
        )
        call = _checked(path, function, parameters, convert)
        folder, _, name = path.rpartition(".")
        setattr(found[f"cupy.{folder}" if folder else "cupy"], name, call)
    for name, count in UFUNCS.items():
        call = _checked(name, getattr(np, name), " ".join("xy"[:count]))
        setattr(found["cupy"], name, _with_an_array(name, call))
    found["cupy"].where = _with_an_array("where", found["cupy"].where)
    found["cupyx.scipy.special"].erfc = _with_an_array("erfc", _checked("erfc", _erfc, "x"))
    found["cupy"].ndarray = StrictArray
    return found


def install(monkeypatch):
    """`import cupy` gives the stand-in until the test ends; returns it."""
    found = modules()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found["cupy"]
