#include "kernels.h"
#include "pointwise_loss.h"

namespace bigkern {

void kl_div_forward(const Tensor& input, const Tensor& target, const std::string& reduction, bool log_target,
                    const Tensor& loss) {
  dispatch_floating(input.dtype, "kl_div_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::forward(pointwise::Problem<T>(input, target, reduction), loss.as<T>(),
                       [log_target](const pointwise::Elements<A>& e) {
                         if (log_target) return vec<A>(exp(e.target) * (e.target - e.input));
                         vec<A> entropy = e.target * log_of_probability(e.target);
                         return vec<A>(select(e.target == 0, vec<A>{}, entropy) - e.target * e.input);
                       });
  });
}

void kl_div_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const std::string& reduction,
                     bool log_target, bool needs_target_grad, const Tensor& grad_input, const Tensor& grad_target) {
  dispatch_floating(input.dtype, "kl_div_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::backward(pointwise::Problem<T>(input, target, reduction), grad_loss.as<const T>(), grad_input.as<T>(),
                        needs_target_grad ? grad_target.as<T>() : nullptr,
                        [log_target, needs_target_grad](const pointwise::Elements<A>& e) {
                          vec<A> p = log_target ? exp(e.target) : e.target, slope = {};
                          if (needs_target_grad && log_target) slope = p * (e.target - e.input + A(1));
                          // NaN where the target is 0
                          if (needs_target_grad && !log_target) slope = log_of_probability(p) + A(1) - e.input;
                          return pointwise::Slopes<A>{-p, slope};
                        });
  });
}

}  // namespace bigkern
