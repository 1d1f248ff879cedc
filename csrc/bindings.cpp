// The contents page of the C++ module: one line per function.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"
#include "python_tensor.h"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(BIGKERN_INSTRUCTION_SET, module) {
  module.def("cross_entropy_forward", &bigkern::cross_entropy_forward, release_gil());
  module.def("cross_entropy_backward", &bigkern::cross_entropy_backward, release_gil());
  module.def("quantize_forward", &bigkern::quantize_forward, release_gil());
  module.def("dequantize_forward", &bigkern::dequantize_forward, release_gil());
}
