#include "kernels.h"
#include "multi_tensor.h"

namespace bigkern {

void sgd_step(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
              const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
              bool zero_grad) {
  UpdateArguments arguments{params, grads, master_params, grad_factor, found_inf, maximize, zero_grad};
  bool has_momentum = !momentum_buffers.empty();
  update_tensors<1>("sgd_step", arguments, {&momentum_buffers}, [&](auto tag, size_t) {
    using A = typename decltype(tag)::type;
    return [=, rate = A(lr), mu = A(momentum), keep = A(1 - dampening), decay = A(weight_decay)](
               vec<A>& param, vec<A> grad, vec<A>(&state)[1]) {
      if (decay != 0) grad += param * decay;
      if (has_momentum) {
        vec<A> buffer = first_step ? grad : state[0] * mu + grad * keep;
        state[0] = buffer;
        grad = nesterov ? grad + buffer * mu : buffer;
      }
      param -= grad * rate;
    };
  });
}

}  // namespace bigkern
