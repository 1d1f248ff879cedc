// Adam, AdamW and AMSGrad over lists of tensors; bigkern/ops/adam.py has the formula, multi_tensor.cuh how blocks find
// their elements. Per element 4 operands are read and 3 written, with AMSGrad 5 and 4.
#include <multi_tensor.cuh>

struct Adam {
  float lr, decay, eps, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2_sqrt;
  bool near_start, decoupled, amsgrad;

  // Leaves the averages and the parameter as they are after the step.
  DEVICE void update(float& param, float grad, float& average, float& square, float& largest) const {
    if (decoupled)
      param *= 1.0f - lr * decay;
    else if (decay != 0)
      grad = fmaf(decay, param, grad);
    average = near_start ? fmaf(one_minus_beta1, grad - average, average)
                         : grad - (1.0f - one_minus_beta1) * (grad - average);
    square = beta2 * square + one_minus_beta2 * grad * grad;
    if (amsgrad) largest = Max()(largest, square);
    const float second = amsgrad ? largest : square;
    const float denominator = sqrtf(second) / correction2_sqrt + eps;
    param -= lr / correction1 * (average / denominator);
  }
};

// grad_factor and found_inf, one number each, may be null. `steps`: 0 takes the corrections as they are given; 1 works
// them out from the step counts, floats, in the table's last row; 2: doubles. `near_start`: beta1 > 1/2.
KERNEL adam_kernel(const uint64* addresses, const int64* plan, const float* grad_factor, const float* found_inf,
                   int64 tensors, int64 wide, int64 steps, int64 amsgrad, int64 near_start, int64 decoupled,
                   int64 maximize, int64 zero_grad, float lr, float weight_decay, float eps, float one_minus_beta1,
                   float beta2, float one_minus_beta2, float correction1, float correction2_sqrt, float log_beta1,
                   float log_beta2) {
  const Block block(addresses, tensors, plan);
  const bool taken = is_taken(found_inf);
  const float factor = gradient_factor(grad_factor, maximize);
  Adam adam = {lr,
               weight_decay,
               eps,
               one_minus_beta1,
               beta2,
               one_minus_beta2,
               correction1,
               correction2_sqrt,
               bool(near_start),
               bool(decoupled),
               bool(amsgrad)};
  if (steps) {
    const float count = steps_of(block, kState + 3, steps == 2);
    adam.correction1 = -expm1f(count * log_beta1);
    adam.correction2_sqrt = sqrtf(-expm1f(count * log_beta2));
  }
  SCALAR* const params = block.operand<SCALAR>(kParam);
  SCALAR* const grads = block.operand<SCALAR>(kGrad);
  State* const weights = block.operand<State>(MASTER ? kMaster : kParam);
  State* const averages = block.operand<State>(kState);
  State* const squares = block.operand<State>(kState + 1);
  State* const maxima = block.operand<State>(kState + 2);

  block.visit(wide, [&](int64 i, auto size) {
    constexpr int width = decltype(size)::value;
    float grad[width], param[width], average[width], square[width], largest[width] = {};
    if (taken) {
      load_gradient(grad, grads + i, factor);
      load_floats(param, weights + i);
      load_floats(average, averages + i);
      load_floats(square, squares + i);
      if (amsgrad) load_floats(largest, maxima + i);
#pragma unroll
      for (int k = 0; k < width; ++k) adam.update(param[k], grad[k], average[k], square[k], largest[k]);
      if constexpr (MASTER) store_floats(weights + i, param);
      store_floats(params + i, param);
      store_floats(averages + i, average);
      store_floats(squares + i, square);
      if (amsgrad) store_floats(maxima + i, largest);
    }
    if (zero_grad) {
#pragma unroll
      for (int k = 0; k < width; ++k) grad[k] = 0;
      store_floats(grads + i, grad);
    }
  });
}
