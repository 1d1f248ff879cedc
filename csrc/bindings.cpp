// The contents page of the C++ module: one line per function.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"
#include "python_tensor.h"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

#ifdef __clang__
#define BIGKERN_COMPILER __VERSION__
#else
#define BIGKERN_COMPILER "GCC " __VERSION__
#endif

PYBIND11_MODULE(BIGKERN_INSTRUCTION_SET, module) {
  module.attr("compiler") = BIGKERN_COMPILER;
  module.def("quantize_forward", &bigkern::quantize_forward, release_gil());
  module.def("dequantize_forward", &bigkern::dequantize_forward, release_gil());
  module.def("attention_forward", &bigkern::attention_forward, release_gil());
  module.def("attention_backward", &bigkern::attention_backward, release_gil());
}
