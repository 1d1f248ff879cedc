#include "kernels.h"
#include "pointwise_loss.h"

namespace bigkern {

void mse_loss_forward(const Tensor& input, const Tensor& target, const std::string& reduction, const Tensor& loss) {
  dispatch_floating(input.dtype, "mse_loss_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::forward(pointwise::Problem<T>(input, target, reduction), loss.as<T>(),
                       [](const pointwise::Elements<A>& e) {
                         vec<A> difference = e.input - e.target;
                         return vec<A>(difference * difference);
                       });
  });
}

void mse_loss_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const std::string& reduction,
                       bool needs_target_grad, const Tensor& grad_input, const Tensor& grad_target) {
  dispatch_floating(input.dtype, "mse_loss_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::backward(pointwise::Problem<T>(input, target, reduction), grad_loss.as<const T>(), grad_input.as<T>(),
                        needs_target_grad ? grad_target.as<T>() : nullptr, [](const pointwise::Elements<A>& e) {
                          vec<A> slope = (e.input - e.target) * A(2);
                          return pointwise::Slopes<A>{slope, -slope};
                        });
  });
}

}  // namespace bigkern
