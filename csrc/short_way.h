// Whole ops in one call, for plain calls without gradients: arguments checked, output allocated and computed without
// going back to Python in between. At small sizes that is most of a call's cost.
//
// A function here returns the output; or True where the arguments are plain and right, but fewer than `small` things
// are to be done, and PyTorch's own function was measured to be faster; or None for all else, mistakes among it: the
// op's Python file then takes the call, with the checks that explain. They are asked only where
// `registration.short_way` finds that nothing watches the call.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/workspace.h"
#include "python_tensor.h"

namespace bigkern::short_way {

namespace py = pybind11;

// The object that a call of Python's C interface returned.
inline py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Reads arguments; once one of them was not plain, `refuses()`.
class Arguments {
 public:
  explicit Arguments(bool grad_enabled) : grad_enabled_(grad_enabled) {}

  bool refuses() const { return refuses_; }
  bool want_gradient() const { return want_gradient_; }
  void require(bool condition) { refuses_ = refuses_ || !condition; }

  // Of torch's own class (a subclass may mean something else by it), whose values lie in memory as they are.
  Tensor tensor(py::handle object) {
    static PyObject *is_cpu = PyUnicode_InternFromString("is_cpu"), *is_neg = PyUnicode_InternFromString("is_neg"),
                    *requires_grad = PyUnicode_InternFromString("requires_grad");
    PyObject* source = object.ptr();
    require(python::known_type(Py_TYPE(source)).is_plain_tensor);
    if (refuses_) return {};
    require(owned(PyObject_GetAttr(source, is_cpu)).ptr() == Py_True);
    require(owned(PyObject_CallMethodNoArgs(source, is_neg)).ptr() == Py_False);
    if (refuses_) return {};
    if (grad_enabled_ && owned(PyObject_GetAttr(source, requires_grad)).ptr() == Py_True) want_gradient_ = true;
    try {
      Tensor tensor = python::tensor_from_object(object);
      require(tensor.numel() != 0);
      return tensor;
    } catch (const py::builtin_exception&) {  // no dtype or memory for a kernel: the long way says so
      refuses_ = true;
      return {};
    }
  }
  Tensor optional_tensor(py::handle object) { return object.is_none() ? Tensor{} : tensor(object); }

  std::string one_of(py::handle object, std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (PyUnicode_Check(object.ptr()) && PyUnicode_CompareWithASCIIString(object.ptr(), name) == 0) return name;
    require(false);
    return {};
  }
  std::string activation(py::handle object) {
    return one_of(object, {"none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"});
  }
  bool boolean(py::handle object) {
    require(PyBool_Check(object.ptr()));
    return object.ptr() == Py_True;
  }
  double number(py::handle object) {
    require(PyFloat_CheckExact(object.ptr()) || PyLong_CheckExact(object.ptr()));
    return refuses_ ? 0 : object.cast<double>();
  }

 private:
  bool grad_enabled_, refuses_ = false, want_gradient_ = false;
};

inline bool is_floating(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float64 || dtype == DType::float16 || dtype == DType::bfloat16;
}

// The dtype in which lse and scales are kept.
inline DType precise(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

// A contiguous view of scratch memory.
inline Tensor scratch(void* data, DType dtype, std::initializer_list<int64_t> sizes) {
  Tensor tensor{data, dtype, static_cast<int>(sizes.size()), {}, {}};
  std::copy(sizes.begin(), sizes.end(), tensor.sizes);
  int64_t stride = 1;
  for (int dim = tensor.ndim - 1; dim >= 0; stride *= tensor.sizes[dim--]) tensor.strides[dim] = stride;
  return tensor;
}

// tensor.new_empty(*sizes)
inline py::object new_empty(py::handle tensor, const int64_t* sizes, int ndim) {
  static PyObject* name = PyUnicode_InternFromString("new_empty");
  py::object integers[kMaxDims];
  PyObject* arguments[kMaxDims + 1] = {tensor.ptr()};
  for (int dim = 0; dim < ndim; ++dim) arguments[dim + 1] = (integers[dim] = py::int_(sizes[dim])).ptr();
  py::tuple no_sizes;
  if (ndim == 0) arguments[1] = no_sizes.ptr();
  return owned(PyObject_VectorcallMethod(name, arguments, static_cast<size_t>(std::max(ndim, 1)) + 1, nullptr));
}

// [..., K] as [rows, K], where strides allow it.
inline bool fold_rows(Tensor& tensor) {
  if (tensor.ndim < 2) return false;
  for (int dim = tensor.ndim - 3; dim >= 0; --dim)
    if (tensor.strides[dim] != tensor.strides[dim + 1] * tensor.sizes[dim + 1]) return false;
  int64_t depth = tensor.sizes[tensor.ndim - 1];
  tensor.sizes[0] = tensor.numel() / depth;
  tensor.strides[0] = tensor.strides[tensor.ndim - 2];
  tensor.sizes[1] = depth;
  tensor.strides[1] = tensor.strides[tensor.ndim - 1];
  tensor.ndim = 2;
  return true;
}

// What linear layers share: input, weight and bias fit, and the output is [*input.shape[:-1], out_features].
class LinearLayer {
 public:
  Tensor input, weight, bias, output;
  py::object result;

  LinearLayer(Arguments& arguments, py::handle input_object, py::handle weight_object, py::handle bias_object)
      : input_object_(input_object) {
    input = arguments.tensor(input_object);
    weight = arguments.tensor(weight_object);
    bias = arguments.optional_tensor(bias_object);
    if (arguments.refuses()) return;
    ndim_ = input.ndim;
    std::copy(input.sizes, input.sizes + input.ndim, sizes_);
    arguments.require(is_floating(input.dtype) && weight.ndim == 2);
    arguments.require(fold_rows(input) && input.sizes[1] == weight.sizes[1]);
    arguments.require(!bias.defined() ||
                      (bias.ndim == 1 && bias.sizes[0] == weight.sizes[0] && bias.dtype == input.dtype));
  }
  void allocate() {
    sizes_[ndim_ - 1] = weight.sizes[0];
    result = new_empty(input_object_, sizes_, ndim_);
    output = python::tensor_from_object(result);
    fold_rows(output);
  }

 private:
  py::handle input_object_;
  int64_t sizes_[kMaxDims];
  int ndim_ = 0;
};

inline py::object linear_act(bool grad_enabled, int64_t small, py::handle input, py::handle weight, py::handle bias,
                             py::handle activation) {
  Arguments arguments(grad_enabled);
  std::string kind = arguments.activation(activation);
  LinearLayer layer(arguments, input, weight, bias);
  if (arguments.refuses() || layer.weight.dtype != layer.input.dtype) return py::none();
  if (arguments.want_gradient()) {
    if (layer.input.numel() * layer.weight.sizes[0] < small) return py::bool_(true);
    return py::none();
  }
  // There the choice of a backend depends on more.
  if (layer.input.dtype == DType::bfloat16) return py::none();
  layer.allocate();
  py::gil_scoped_release release;
  linear_act_forward(layer.input, layer.weight, layer.bias, kind, false, layer.output, {});
  return std::move(layer.result);
}

inline py::object int8_linear(bool grad_enabled, py::handle input, py::handle qweight, py::handle weight_scale,
                              py::handle bias, py::handle activation) {
  constexpr int64_t kMaxDepth = INT32_MAX / (127 * 128);  // what an int32 sum can hold
  Arguments arguments(grad_enabled);
  std::string kind = arguments.activation(activation);
  LinearLayer layer(arguments, input, qweight, bias);
  Tensor scale = arguments.tensor(weight_scale);
  if (arguments.refuses() || arguments.want_gradient()) return py::none();
  arguments.require(layer.weight.dtype == DType::int8 && layer.weight.sizes[1] <= kMaxDepth);
  arguments.require(scale.dtype == precise(layer.input.dtype) && scale.ndim == 1 &&
                    scale.sizes[0] == layer.weight.sizes[0]);
  if (arguments.refuses()) return py::none();
  layer.allocate();
  py::gil_scoped_release release;
  int8_linear_forward(layer.input, layer.weight, scale, layer.bias, kind, false, layer.output, {});
  return std::move(layer.result);
}

// Logits [N, C] with classes side by side, int64 targets [N], no class weights.
inline py::object cross_entropy(bool grad_enabled, int64_t few, int64_t small, py::handle input, py::handle target,
                                py::handle weight, py::handle ignore_index, py::handle reduction,
                                py::handle label_smoothing) {
  Arguments arguments(grad_enabled);
  arguments.require(weight.is_none() && PyLong_CheckExact(ignore_index.ptr()));
  std::string kind = arguments.one_of(reduction, {"mean", "sum", "none"});
  double smoothing = arguments.number(label_smoothing);
  Tensor logits = arguments.tensor(input), classes = arguments.tensor(target);
  if (arguments.refuses()) return py::none();
  arguments.require(is_floating(logits.dtype) && logits.ndim == 2 && logits.strides[1] == 1);
  arguments.require(classes.dtype == DType::int64 && classes.ndim == 1 && classes.sizes[0] == logits.sizes[0]);
  arguments.require(smoothing >= 0 && smoothing <= 1);
  if (arguments.refuses()) return py::none();
  if (logits.numel() >= (arguments.want_gradient() ? 0 : few) && logits.numel() < small) return py::bool_(true);
  if (arguments.want_gradient()) return py::none();
  int64_t rows = logits.sizes[0], ignored = ignore_index.cast<int64_t>();
  // The kernel's layout: positions after the classes.
  logits.ndim = 3, logits.sizes[2] = logits.strides[2] = 1;
  classes.ndim = 2, classes.sizes[1] = classes.strides[1] = 1;
  py::object result = new_empty(input, &rows, kind == "none" ? 1 : 0);
  Tensor loss = python::tensor_from_object(result);
  py::gil_scoped_release release;
  Lease<struct CrossEntropyLse> lse(static_cast<size_t>(rows) * sizeof(double));
  double total_weight;
  DType dtype = precise(logits.dtype);
  cross_entropy_forward(logits, classes, {}, ignored, kind, smoothing, loss, scratch(lse.as<void>(), dtype, {rows, 1}),
                        scratch(&total_weight, dtype, {}));
  return result;
}

// [batch, heads, length, dim] without mask and dropout.
inline py::object attention(bool grad_enabled, py::handle query, py::handle key, py::handle value, py::handle attn_mask,
                            py::handle dropout_p, py::handle is_causal, py::handle scale, py::handle enable_gqa) {
  Arguments arguments(grad_enabled);
  arguments.require(attn_mask.is_none() && arguments.number(dropout_p) == 0);
  bool causal = arguments.boolean(is_causal), grouped = arguments.boolean(enable_gqa);
  double factor = scale.is_none() ? 0 : arguments.number(scale);
  Tensor q = arguments.tensor(query), k = arguments.tensor(key), v = arguments.tensor(value);
  if (arguments.refuses() || arguments.want_gradient() || q.ndim != 4 || k.ndim != 4 || v.ndim != 4) return py::none();
  arguments.require(is_floating(q.dtype) && k.dtype == q.dtype && v.dtype == q.dtype);
  arguments.require(k.sizes[0] == q.sizes[0] && v.sizes[0] == q.sizes[0]);
  arguments.require(v.sizes[1] == k.sizes[1] && (grouped ? q.sizes[1] % k.sizes[1] == 0 : q.sizes[1] == k.sizes[1]));
  arguments.require(k.sizes[3] == q.sizes[3] && v.sizes[2] == k.sizes[2]);
  if (arguments.refuses()) return py::none();
  if (scale.is_none()) factor = 1 / std::sqrt(static_cast<double>(q.sizes[3]));
  int64_t sizes[] = {q.sizes[0], q.sizes[1], q.sizes[2], v.sizes[3]};
  py::object result = new_empty(query, sizes, 4);
  Tensor output = python::tensor_from_object(result);
  py::gil_scoped_release release;
  Lease<struct AttentionLse> lse(static_cast<size_t>(sizes[0] * sizes[1] * sizes[2]) * sizeof(double));
  attention_forward(q, k, v, {}, {}, 0.0, causal, factor, {}, -1, -1, output,
                    scratch(lse.as<void>(), precise(q.dtype), {sizes[0], sizes[1], sizes[2]}));
  return result;
}

}  // namespace bigkern::short_way
