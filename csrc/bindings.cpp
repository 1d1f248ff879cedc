// The contents page of the C++ module: one line per function. Compiled once, and linked with the kernels of each
// instruction set: nothing here may depend on one.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"
#include "python_tensor.h"
#include "short_way.h"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

#ifdef __clang__
#define BIGKERN_COMPILER __VERSION__
#else
#define BIGKERN_COMPILER "GCC " __VERSION__
#endif

static void define_functions(py::module_& module) {
  module.attr("compiler") = BIGKERN_COMPILER;
  module.def("add_layer_norm_forward", &bigkern::add_layer_norm_forward, release_gil());
  module.def("add_layer_norm_backward", &bigkern::add_layer_norm_backward, release_gil());
  module.def("adagrad_step", &bigkern::adagrad_step, release_gil());
  module.def("adam_step", &bigkern::adam_step, release_gil());
  module.def("attention", &bigkern::short_way::attention);
  module.def("cross_entropy", &bigkern::short_way::cross_entropy);
  module.def("int8_linear", &bigkern::short_way::int8_linear);
  module.def("linear_act", &bigkern::short_way::linear_act);

  module.def("attention_forward", &bigkern::attention_forward, release_gil());
  module.def("attention_backward", &bigkern::attention_backward, release_gil());
  module.def("attention_decode_forward", &bigkern::attention_decode_forward, release_gil());
  module.def("attention_varlen_forward", &bigkern::attention_varlen_forward, release_gil());
  module.def("attention_varlen_backward", &bigkern::attention_varlen_backward, release_gil());
  module.def("cache_append_step", &bigkern::cache_append_step, release_gil());
  module.def("cross_entropy_forward", &bigkern::cross_entropy_forward, release_gil());
  module.def("cross_entropy_backward", &bigkern::cross_entropy_backward, release_gil());
  module.def("grad_norm_forward", &bigkern::grad_norm_forward, release_gil());
  module.def("clip_grads_step", &bigkern::clip_grads_step, release_gil());
  module.def("int8_linear_forward", &bigkern::int8_linear_forward, release_gil());
  module.def("layer_norm_forward", &bigkern::layer_norm_forward, release_gil());
  module.def("layer_norm_backward", &bigkern::layer_norm_backward, release_gil());
  module.def("linear_act_forward", &bigkern::linear_act_forward, release_gil());
  module.def("linear_act_backward", &bigkern::linear_act_backward, release_gil());
  module.def("quantize_forward", &bigkern::quantize_forward, release_gil());
  module.def("dequantize_forward", &bigkern::dequantize_forward, release_gil());
  module.def("rms_norm_forward", &bigkern::rms_norm_forward, release_gil());
  module.def("rms_norm_backward", &bigkern::rms_norm_backward, release_gil());
  module.def("rmsprop_step", &bigkern::rmsprop_step, release_gil());
  module.def("sgd_step", &bigkern::sgd_step, release_gil());
  module.def("weight_only_linear_forward", &bigkern::weight_only_linear_forward, release_gil());
}

// A module finds its entry by its own name.
PYBIND11_MODULE(baseline, module) { define_functions(module); }
PYBIND11_MODULE(avx2, module) { define_functions(module); }
PYBIND11_MODULE(avx512, module) { define_functions(module); }
