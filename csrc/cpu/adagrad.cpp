#include "kernels.h"
#include "multi_tensor.h"

namespace bigkern {

void adagrad_step(const TensorList& params, const TensorList& grads, const TensorList& state_sums,
                  const TensorList& state_steps, const TensorList& master_params, const Tensor& grad_factor,
                  const Tensor& found_inf, double lr, double lr_decay, double eps, double weight_decay, bool maximize,
                  bool zero_grad) {
  UpdateArguments arguments{params, grads, master_params, grad_factor, found_inf, maximize, zero_grad};
  std::vector<double> steps = count_steps(state_steps, arguments.skips());
  update_tensors<1>("adagrad_step", arguments, {&state_sums}, [&](auto tag, size_t which) {
    using A = typename decltype(tag)::type;
    return [rate = A(lr / (1 + (steps[which] - 1) * lr_decay)), epsilon = A(eps), decay = A(weight_decay)](
               vec<A>& param, vec<A> grad, vec<A>(&state)[1]) {
      if (decay != 0) grad += param * decay;
      state[0] += grad * grad;
      param -= grad / (sqrt(state[0]) + epsilon) * rate;
    };
  });
}

}  // namespace bigkern
