// Every CPU kernel: inputs in the order of the op's schema, then the outputs, which the caller has allocated.
// Shapes and meaning stand in bigkern/ops/<op>.py; arguments are checked there.
#pragma once

#include <string>

#include "../tensor.h"

namespace bigkern {

void cross_entropy_forward(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                           const std::string& reduction, double label_smoothing, const Tensor& loss, const Tensor& lse,
                           const Tensor& total_weight);
void cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& weight,
                            const Tensor& lse, const Tensor& total_weight, int64_t ignore_index,
                            const std::string& reduction, double label_smoothing, bool needs_target_grad,
                            const Tensor& grad_input, const Tensor& grad_target);
void quantize_forward(const Tensor& input, bool symmetric, const Tensor& qinput, const Tensor& scale,
                      const Tensor& zero_point);
void dequantize_forward(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point, const Tensor& output);

}  // namespace bigkern
