#include "kernels.h"
#include "norm_backward.h"
#include "norm_forward.h"

namespace bigkern {

void rms_norm_forward(const Tensor& input, const Tensor& weight, double eps, const Tensor& output, const Tensor& rstd) {
  dispatch_floating(input.dtype, "rms_norm_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    norm::TensorSource<T> source{norm::Rows<T>(input)};
    norm::forward<false, T>(source, input.sizes[0], input.sizes[1], weight, Tensor{}, eps,
                            {output.as<T>(), nullptr, rstd.as<acc_t<T>>()});
  });
}

void rms_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& rstd,
                       bool needs_input_grad, bool needs_weight_grad, const Tensor& grad_input,
                       const Tensor& grad_weight) {
  dispatch_floating(input.dtype, "rms_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* target = needs_input_grad ? grad_input.as<T>() : nullptr;
    const Tensor none;
    norm::backward<false, T>({grad_output, input, weight, none, rstd, needs_weight_grad, false, grad_weight, none},
                             [&] { return norm::TensorSink<T>{target, input.sizes[1]}; });
  });
}

}  // namespace bigkern
