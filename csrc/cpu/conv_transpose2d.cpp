#include "conv.h"
#include "kernels.h"

// Input and output change places: this input is the plain convolution's grad_output.
namespace bigkern {

void conv_transpose2d_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t stride_h,
                              int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t /*output_padding_h*/,
                              int64_t /*output_padding_w*/, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                              const Tensor& output) {
  const ConvGeometry geometry = {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups};

  conv_grad_input(input, weight, bias, geometry, output);
}

void conv_transpose2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, int64_t stride_h,
                               int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t /*output_padding_h*/,
                               int64_t /*output_padding_w*/, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                               bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                               const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias) {
  const ConvGeometry geometry = {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups};

  if (needs_input_grad) conv_forward(grad_output, weight, {}, geometry, false, grad_input);
  if (needs_weight_grad) conv_grad_weight(input, grad_output, geometry, grad_weight);
  if (needs_bias_grad) channel_sums(grad_output, grad_bias);
}

}  // namespace bigkern
