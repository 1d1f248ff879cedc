// Every CPU kernel: inputs in the order of the op's schema, then the outputs, which the caller has allocated.
// Shapes and meaning stand in bigkern/ops/<op>.py; arguments are checked there.
#pragma once

#include <string>

#include "../tensor.h"

namespace bigkern {

void quantize_forward(const Tensor& input, bool symmetric, const Tensor& qinput, const Tensor& scale,
                      const Tensor& zero_point);
void dequantize_forward(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point, const Tensor& output);

void int8_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale, const Tensor& bias,
                         const std::string& activation, bool save_pre_activation, const Tensor& output,
                         const Tensor& pre_activation);
void linear_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const std::string& activation,
                        bool save_pre_activation, const Tensor& output, const Tensor& pre_activation);
void linear_act_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& saved,
                         const std::string& activation, bool needs_input_grad, bool needs_weight_grad,
                         bool needs_bias_grad, const Tensor& grad_input, const Tensor& grad_weight,
                         const Tensor& grad_bias);

}  // namespace bigkern
