#include "kernels.h"
#include "norm_backward.h"
#include "norm_forward.h"

namespace bigkern {

void layer_norm_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps, const Tensor& output,
                        const Tensor& mean, const Tensor& rstd) {
  dispatch_floating(input.dtype, "layer_norm_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    norm::TensorSource<T> source{norm::Rows<T>(input)};
    norm::forward<true, T>(source, input.sizes[0], input.sizes[1], weight, bias, eps,
                           {output.as<T>(), mean.as<A>(), rstd.as<A>()});
  });
}

void layer_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& /*bias*/,
                         const Tensor& mean, const Tensor& rstd, bool needs_input_grad, bool needs_weight_grad,
                         bool needs_bias_grad, const Tensor& grad_input, const Tensor& grad_weight,
                         const Tensor& grad_bias) {
  dispatch_floating(input.dtype, "layer_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* target = needs_input_grad ? grad_input.as<T>() : nullptr;
    norm::backward<true, T>(
        {grad_output, input, weight, mean, rstd, needs_weight_grad, needs_bias_grad, grad_weight, grad_bias},
        [&] { return norm::TensorSink<T>{target, input.sizes[1]}; });
  });
}

}  // namespace bigkern
