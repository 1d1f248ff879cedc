#include <cmath>

#include "kernels.h"
#include "multi_tensor.h"

namespace bigkern {
void adam_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
               const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& state_steps,
               const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
               double beta1, double beta2, double eps, double weight_decay, bool decoupled_weight_decay, bool maximize,
               bool zero_grad) {
  UpdateArguments arguments{params, grads, master_params, grad_factor, found_inf, maximize, zero_grad};
  std::vector<double> steps = count_steps(state_steps, arguments.skips());
  bool amsgrad = !max_exp_avg_sqs.empty();
  update_tensors<3>("adam_step", arguments, {&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs}, [&](auto tag, size_t which) {
    using A = typename decltype(tag)::type;
    A step_size = A(lr / (1 - std::pow(beta1, steps[which])));
    // A product: two divisions an element would take longer than memory does.
    A inverse_correction2_sqrt = A(1 / std::sqrt(1 - std::pow(beta2, steps[which])));
    A decay = A(decoupled_weight_decay ? 0 : weight_decay);
    A shrink = A(decoupled_weight_decay ? 1 - lr * weight_decay : 1);
    return [=, new1 = A(1 - beta1), old2 = A(beta2), new2 = A(1 - beta2), epsilon = A(eps)](vec<A>& param, vec<A> grad,
                                                                                            vec<A>(&state)[3]) {
      if (shrink != 1) param *= shrink;
      if (decay != 0) grad += param * decay;
      state[0] = interpolate<A>(state[0], grad, new1);
      state[1] = state[1] * old2 + grad * grad * new2;
      vec<A> second = state[1];
      if (amsgrad) second = state[2] = max_nan(state[2], second);
      vec<A> denominator = sqrt(second) * inverse_correction2_sqrt + epsilon;
      param -= state[0] / denominator * step_size;
    };
  });
}

}  // namespace bigkern
