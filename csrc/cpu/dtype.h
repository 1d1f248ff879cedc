// From a run-time dtype to a compile-time type.
#pragma once

#include <stdexcept>
#include <string>

#include "../tensor.h"
#include "simd.h"

namespace bigkern {

template <class T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>{}) for the floating type of `dtype`.
template <class Body>
void dispatch_floating(DType dtype, const char* where, const Body& body) {
  switch (dtype) {
    case DType::float32: return body(TypeTag<float>{});
    case DType::float64: return body(TypeTag<double>{});
    case DType::float16: return body(TypeTag<half>{});
    case DType::bfloat16: return body(TypeTag<bfloat16>{});
    default: throw std::invalid_argument(std::string(where) + ": expected a floating dtype");
  }
}

}  // namespace bigkern
