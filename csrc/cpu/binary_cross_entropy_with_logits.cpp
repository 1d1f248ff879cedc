#include "kernels.h"
#include "pointwise_loss.h"

namespace bigkern {
namespace {

// log(1 + exp(-x))
template <class A>
vec<A> softplus_of_minus(vec<A> x, vec<A> log1p_exp_minus_magnitude) {
  return log1p_exp_minus_magnitude + (x < 0 ? vec<A>(-x) : vec<A>{});
}
template <class A>
vec<A> magnitude(vec<A> x) {
  return x < 0 ? vec<A>(-x) : x;
}

}  // namespace

void binary_cross_entropy_with_logits_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                                              const Tensor& pos_weight, const std::string& reduction,
                                              const Tensor& loss) {
  dispatch_floating(input.dtype, "binary_cross_entropy_with_logits_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::Problem<T> problem(input, target, reduction, weight, pos_weight);
    pointwise::forward(problem, loss.as<T>(), [](const pointwise::Elements<A>& e) {
      vec<A> softplus = softplus_of_minus<A>(e.input, log1p_exp_minus<A>(magnitude<A>(e.input)));
      vec<A> factor = (e.pos_weight - A(1)) * e.target + A(1);
      return vec<A>(e.weight * ((A(1) - e.target) * e.input + factor * softplus));
    });
  });
}

void binary_cross_entropy_with_logits_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                                               const Tensor& weight, const Tensor& pos_weight,
                                               const std::string& reduction, bool needs_target_grad,
                                               const Tensor& grad_input, const Tensor& grad_target) {
  dispatch_floating(input.dtype, "binary_cross_entropy_with_logits_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    pointwise::Problem<T> problem(input, target, reduction, weight, pos_weight);
    pointwise::backward(
        problem, grad_loss.as<const T>(), grad_input.as<T>(), needs_target_grad ? grad_target.as<T>() : nullptr,
        [needs_target_grad](const pointwise::Elements<A>& e) {
          vec<A> decay = exp(vec<A>(-magnitude<A>(e.input)));
          // sigmoid(-x) and sigmoid(x) from the one exponential that cannot overflow
          vec<A> smaller = decay / (decay + A(1)), larger = A(1) / (decay + A(1));
          vec<A> of_minus = e.input < 0 ? larger : smaller, of_plus = e.input < 0 ? smaller : larger;
          vec<A> slope = (A(1) - e.target) * of_plus - e.pos_weight * e.target * of_minus;
          vec<A> target_slope = {};
          if (needs_target_grad)
            target_slope = (e.pos_weight - A(1)) * softplus_of_minus<A>(e.input, log1p_unit(decay)) - e.input;
          return pointwise::Slopes<A>{e.weight * slope, e.weight * target_slope};
        });
  });
}

}  // namespace bigkern
