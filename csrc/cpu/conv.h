// Convolution of images: what conv2d and conv_transpose2d have in common. Tensors are [N, C, H, W] with any strides.
//
// Names are those of the plain convolution: its output has pixel y where its input has pixels y * stride - padding +
// tap * dilation. A transposed convolution calls conv_grad_input for its forward.
#pragma once

#include <cstdint>

#include "../tensor.h"

namespace bigkern {

struct ConvGeometry {
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
};

// output = act(convolution of input with weight, + bias where it is defined), act being relu or nothing.
void conv_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const ConvGeometry& geometry,
                  bool relu, const Tensor& output);
// grad_input, + bias where it is defined; its size says how many pixels there are.
void conv_grad_input(const Tensor& grad_output, const Tensor& weight, const Tensor& bias, const ConvGeometry& geometry,
                     const Tensor& grad_input);
void conv_grad_weight(const Tensor& grad_output, const Tensor& input, const ConvGeometry& geometry,
                      const Tensor& grad_weight);
// sums[c] = the sum of image over all but its channels.
void channel_sums(const Tensor& image, const Tensor& sums);

}  // namespace bigkern
