// Python object -> Tensor, without torch's headers: so that one build serves every version of torch, and none.
//
// Tensors of torch 2.10 and later are read through DLPack's C exchange table, which costs nanoseconds; those of older
// versions through data_ptr(), shape and stride(); NumPy arrays through ctypes, shape and strides.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensor.h"

namespace bigkern::python {

namespace py = pybind11;

// The part of the DLPack 1.x ABI that is used here; field order and widths are fixed by that standard.
struct DLPackTensor {
  void* data;
  struct {
    int32_t device_type;
    int32_t device_id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLPackExchangeTable {
  struct {
    uint32_t major;
    uint32_t minor;
  } version;
  void* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*tensor_from_object)(void* object, DLPackTensor* out);
  void* current_work_stream;
};

inline DType dtype_from_dlpack(int code, int bits) {
  enum { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
  if (code == kFloat && bits == 32) return DType::float32;
  if (code == kFloat && bits == 64) return DType::float64;
  if (code == kFloat && bits == 16) return DType::float16;
  if (code == kBfloat && bits == 16) return DType::bfloat16;
  if (code == kInt && bits == 8) return DType::int8;
  if (code == kUInt && bits == 8) return DType::uint8;
  if (code == kInt && bits == 32) return DType::int32;
  if (code == kInt && bits == 64) return DType::int64;
  if (code == kBool && bits == 8) return DType::boolean;
  throw py::type_error("bigkern._C: a tensor has a dtype that no kernel takes");
}

inline DType dtype_from_name(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "int8") return DType::int8;
  if (name == "uint8") return DType::uint8;
  if (name == "int32") return DType::int32;
  if (name == "int64") return DType::int64;
  if (name == "bool") return DType::boolean;
  throw py::type_error("bigkern._C: no kernel takes dtype " + name);
}

inline void check_ndim(int64_t ndim) {
  if (ndim > kMaxDims)
    throw py::value_error("bigkern._C: a tensor has " + std::to_string(ndim) + " dimensions; at most 8 are supported");
}

// What is known about one Python type.
struct KnownType {
  PyTypeObject* type = nullptr;
  const DLPackExchangeTable* table = nullptr;  // null: its objects are read by other means
  bool is_plain_tensor = false;                // torch.Tensor or torch.nn.Parameter itself, no subclass
};

inline KnownType look_at_type(PyTypeObject* type) {
  KnownType known{type};
  py::handle object(reinterpret_cast<PyObject*>(type));
  py::object capsule = py::getattr(object, "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    auto* found = static_cast<const DLPackExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (found->version.major == 1) known.table = found;
    py::module_ torch = py::module_::import("torch");
    known.is_plain_tensor = object.is(torch.attr("Tensor")) || object.is(torch.attr("nn").attr("Parameter"));
  }
  Py_INCREF(type);  // keeps the address from being reused by another type
  return known;
}

// Remembers the last few types seen: tensors and parameters take turns.
inline const KnownType& known_type(PyTypeObject* type) {
  constexpr int kRemembered = 4;
  static thread_local KnownType remembered[kRemembered];
  static thread_local int next = 0;
  for (const KnownType& known : remembered)
    if (known.type == type) return known;
  KnownType& place = remembered[next++ % kRemembered];
  return place = look_at_type(type);
}

inline Tensor tensor_from_exchange(const DLPackExchangeTable* table, py::handle object) {
  DLPackTensor source;
  if (table->tensor_from_object(object.ptr(), &source) != 0) throw py::error_already_set();
  constexpr int kCpuDevice = 1;
  if (source.device.device_type != kCpuDevice) throw py::value_error("bigkern._C: expected a tensor in CPU memory");
  check_ndim(source.ndim);
  Tensor tensor;
  tensor.data = static_cast<char*>(source.data) + source.byte_offset;
  tensor.dtype = dtype_from_dlpack(source.dtype.code, source.dtype.bits);
  tensor.ndim = source.ndim;
  int64_t contiguous_stride = 1;
  for (int dim = source.ndim - 1; dim >= 0; --dim) {
    tensor.sizes[dim] = source.shape[dim];
    tensor.strides[dim] = source.strides ? source.strides[dim] : contiguous_stride;
    contiguous_stride *= source.shape[dim];
  }
  return tensor;
}

inline Tensor tensor_from_numpy(py::handle object) {
  Tensor tensor;
  tensor.data = reinterpret_cast<void*>(object.attr("ctypes").attr("data").cast<std::uintptr_t>());
  tensor.dtype = dtype_from_name(py::str(object.attr("dtype").attr("name")));
  py::tuple shape = object.attr("shape"), strides = object.attr("strides");
  int64_t item_size = object.attr("itemsize").cast<int64_t>();
  check_ndim(static_cast<int64_t>(shape.size()));
  tensor.ndim = static_cast<int>(shape.size());
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    tensor.sizes[dim] = shape[dim].cast<int64_t>();
    int64_t stride_bytes = strides[dim].cast<int64_t>();
    if (stride_bytes % item_size != 0) throw py::value_error("bigkern._C: array strides must be whole elements");
    tensor.strides[dim] = stride_bytes / item_size;
  }
  return tensor;
}

inline Tensor tensor_from_methods(py::handle object) {
  if (object.attr("device").attr("type").cast<std::string>() != "cpu")
    throw py::value_error("bigkern._C: expected a tensor in CPU memory");
  Tensor tensor;
  tensor.data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<std::uintptr_t>());
  std::string dtype = py::str(object.attr("dtype"));  // "torch.float32"
  tensor.dtype = dtype_from_name(dtype.substr(dtype.rfind('.') + 1));
  py::tuple shape = object.attr("shape"), strides = object.attr("stride")();
  check_ndim(static_cast<int64_t>(shape.size()));
  tensor.ndim = static_cast<int>(shape.size());
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    tensor.sizes[dim] = shape[dim].cast<int64_t>();
    tensor.strides[dim] = strides[dim].cast<int64_t>();
  }
  return tensor;
}

inline Tensor read_tensor(py::handle object) {
  if (const DLPackExchangeTable* table = known_type(Py_TYPE(object.ptr())).table)
    return tensor_from_exchange(table, object);
  if (py::hasattr(object, "data_ptr")) return tensor_from_methods(object);
  if (py::hasattr(object, "ctypes")) return tensor_from_numpy(object);
  throw py::type_error("bigkern._C: expected a torch.Tensor or numpy.ndarray, got " +
                       std::string(Py_TYPE(object.ptr())->tp_name));
}

inline Tensor tensor_from_object(py::handle object) {
  if (object.is_none()) return Tensor{};
  Tensor tensor = read_tensor(object);
  if (!tensor.data && tensor.numel() != 0)
    throw py::value_error("bigkern._C: a tensor has no memory (its storage was freed, or never made)");
  return tensor;
}

inline TensorList tensors_from_list(py::handle object) {
  if (!PyList_Check(object.ptr()))
    throw py::type_error("bigkern._C: expected a list of tensors, got " + std::string(Py_TYPE(object.ptr())->tp_name));
  TensorList tensors;
  tensors.reserve(static_cast<size_t>(PyList_GET_SIZE(object.ptr())));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object.ptr()); ++i)
    tensors.push_back(tensor_from_object(PyList_GET_ITEM(object.ptr(), i)));
  return tensors;
}

}  // namespace bigkern::python

namespace pybind11::detail {

template <>
struct type_caster<bigkern::Tensor> {
  PYBIND11_TYPE_CASTER(bigkern::Tensor, const_name("Tensor"));
  bool load(handle source, bool /*convert*/) {
    value = bigkern::python::tensor_from_object(source);
    return true;
  }
};

template <>
struct type_caster<bigkern::TensorList> {
  PYBIND11_TYPE_CASTER(bigkern::TensorList, const_name("list[Tensor]"));
  bool load(handle source, bool /*convert*/) {
    value = bigkern::python::tensors_from_list(source);
    return true;
  }
};

}  // namespace pybind11::detail
