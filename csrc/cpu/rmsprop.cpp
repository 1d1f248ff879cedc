#include "kernels.h"
#include "multi_tensor.h"

namespace bigkern {

void rmsprop_step(const TensorList& params, const TensorList& grads, const TensorList& square_avgs,
                  const TensorList& grad_avgs, const TensorList& momentum_buffers, const TensorList& state_steps,
                  const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
                  double alpha, double eps, double weight_decay, double momentum, bool maximize, bool zero_grad) {
  UpdateArguments arguments{params, grads, master_params, grad_factor, found_inf, maximize, zero_grad};
  count_steps(state_steps, arguments.skips());
  bool centered = !grad_avgs.empty(), has_momentum = !momentum_buffers.empty();
  update_tensors<3>("rmsprop_step", arguments, {&square_avgs, &grad_avgs, &momentum_buffers}, [&](auto tag, size_t) {
    using A = typename decltype(tag)::type;
    return [=, rate = A(lr), old = A(alpha), fresh = A(1 - alpha), epsilon = A(eps), decay = A(weight_decay),
            mu = A(momentum)](vec<A>& param, vec<A> grad, vec<A>(&state)[3]) {
      if (decay != 0) grad += param * decay;
      state[0] = state[0] * old + grad * grad * fresh;
      vec<A> variance = state[0];
      if (centered) {
        state[1] = interpolate<A>(state[1], grad, fresh);
        variance -= state[1] * state[1];
      }
      vec<A> update = grad / (sqrt(variance) + epsilon);
      if (has_momentum) update = state[2] = state[2] * mu + update;
      param -= update * rate;
    };
  });
}

}  // namespace bigkern
