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
  // Whole ops, for plain calls.
  module.def("attention", &bigkern::short_way::attention);
  module.def("cross_entropy", &bigkern::short_way::cross_entropy);
  module.def("int8_linear", &bigkern::short_way::int8_linear);
  module.def("linear_act", &bigkern::short_way::linear_act);

  // Kernels.
  module.def("adagrad_step", &bigkern::adagrad_step, release_gil());
  module.def("adam_step", &bigkern::adam_step, release_gil());
  module.def("adaptive_avg_pool2d_forward", &bigkern::adaptive_avg_pool2d_forward, release_gil());
  module.def("adaptive_avg_pool2d_backward", &bigkern::adaptive_avg_pool2d_backward, release_gil());
  module.def("add_layer_norm_forward", &bigkern::add_layer_norm_forward, release_gil());
  module.def("add_layer_norm_backward", &bigkern::add_layer_norm_backward, release_gil());
  module.def("attention_forward", &bigkern::attention_forward, release_gil());
  module.def("attention_backward", &bigkern::attention_backward, release_gil());
  module.def("attention_decode_forward", &bigkern::attention_decode_forward, release_gil());
  module.def("attention_varlen_forward", &bigkern::attention_varlen_forward, release_gil());
  module.def("attention_varlen_backward", &bigkern::attention_varlen_backward, release_gil());
  module.def("avg_pool2d_forward", &bigkern::avg_pool2d_forward, release_gil());
  module.def("avg_pool2d_backward", &bigkern::avg_pool2d_backward, release_gil());
  module.def("batch_norm_act_forward", &bigkern::batch_norm_act_forward, release_gil());
  module.def("batch_norm_act_backward", &bigkern::batch_norm_act_backward, release_gil());
  module.def("binary_cross_entropy_with_logits_forward", &bigkern::binary_cross_entropy_with_logits_forward,
             release_gil());
  module.def("binary_cross_entropy_with_logits_backward", &bigkern::binary_cross_entropy_with_logits_backward,
             release_gil());
  module.def("cache_append_step", &bigkern::cache_append_step, release_gil());
  module.def("clip_grads_step", &bigkern::clip_grads_step, release_gil());
  module.def("conv2d_forward", &bigkern::conv2d_forward, release_gil());
  module.def("conv2d_backward", &bigkern::conv2d_backward, release_gil());
  module.def("conv_transpose2d_forward", &bigkern::conv_transpose2d_forward, release_gil());
  module.def("conv_transpose2d_backward", &bigkern::conv_transpose2d_backward, release_gil());
  module.def("cross_entropy_forward", &bigkern::cross_entropy_forward, release_gil());
  module.def("cross_entropy_backward", &bigkern::cross_entropy_backward, release_gil());
  module.def("dequantize_forward", &bigkern::dequantize_forward, release_gil());
  module.def("distillation_loss_forward", &bigkern::distillation_loss_forward, release_gil());
  module.def("distillation_loss_backward", &bigkern::distillation_loss_backward, release_gil());
  module.def("embedding_forward", &bigkern::embedding_forward, release_gil());
  module.def("embedding_backward", &bigkern::embedding_backward, release_gil());
  module.def("embedding_bag_forward", &bigkern::embedding_bag_forward, release_gil());
  module.def("embedding_bag_backward", &bigkern::embedding_bag_backward, release_gil());
  module.def("embedding_layer_norm_forward", &bigkern::embedding_layer_norm_forward, release_gil());
  module.def("embedding_layer_norm_backward", &bigkern::embedding_layer_norm_backward, release_gil());
  module.def("gated_act_forward", &bigkern::gated_act_forward, release_gil());
  module.def("gated_act_backward", &bigkern::gated_act_backward, release_gil());
  module.def("grad_norm_forward", &bigkern::grad_norm_forward, release_gil());
  module.def("group_norm_forward", &bigkern::group_norm_forward, release_gil());
  module.def("group_norm_backward", &bigkern::group_norm_backward, release_gil());
  module.def("gru_forward", &bigkern::gru_forward, release_gil());
  module.def("gru_backward", &bigkern::gru_backward, release_gil());
  module.def("int8_linear_forward", &bigkern::int8_linear_forward, release_gil());
  module.def("kl_div_forward", &bigkern::kl_div_forward, release_gil());
  module.def("kl_div_backward", &bigkern::kl_div_backward, release_gil());
  module.def("layer_norm_forward", &bigkern::layer_norm_forward, release_gil());
  module.def("layer_norm_backward", &bigkern::layer_norm_backward, release_gil());
  module.def("linear_act_forward", &bigkern::linear_act_forward, release_gil());
  module.def("linear_act_backward", &bigkern::linear_act_backward, release_gil());
  module.def("linear_cross_entropy_forward", &bigkern::linear_cross_entropy_forward, release_gil());
  module.def("linear_cross_entropy_backward", &bigkern::linear_cross_entropy_backward, release_gil());
  module.def("lstm_forward", &bigkern::lstm_forward, release_gil());
  module.def("lstm_backward", &bigkern::lstm_backward, release_gil());
  module.def("max_pool2d_forward", &bigkern::max_pool2d_forward, release_gil());
  module.def("max_pool2d_backward", &bigkern::max_pool2d_backward, release_gil());
  module.def("mse_loss_forward", &bigkern::mse_loss_forward, release_gil());
  module.def("mse_loss_backward", &bigkern::mse_loss_backward, release_gil());
  module.def("quantize_forward", &bigkern::quantize_forward, release_gil());
  module.def("rms_norm_forward", &bigkern::rms_norm_forward, release_gil());
  module.def("rms_norm_backward", &bigkern::rms_norm_backward, release_gil());
  module.def("rmsprop_step", &bigkern::rmsprop_step, release_gil());
  module.def("rnn_forward", &bigkern::rnn_forward, release_gil());
  module.def("rnn_backward", &bigkern::rnn_backward, release_gil());
  module.def("rotary_embedding_forward", &bigkern::rotary_embedding_forward, release_gil());
  module.def("rotary_embedding_backward", &bigkern::rotary_embedding_backward, release_gil());
  module.def("sgd_step", &bigkern::sgd_step, release_gil());
  module.def("weight_only_linear_forward", &bigkern::weight_only_linear_forward, release_gil());
}

// A module finds its entry by its own name.
PYBIND11_MODULE(baseline, module) { define_functions(module); }
PYBIND11_MODULE(avx2, module) { define_functions(module); }
PYBIND11_MODULE(avx512, module) { define_functions(module); }
