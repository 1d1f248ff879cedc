// The norm of a list of gradients taken as one vector, the factor that clips them, and clipping; multi_tensor.cuh says
// how blocks find their elements. The norm reads every gradient once and writes one number a block.
#include <multi_tensor.cuh>

// partial [blocks]: the sum of squares, or the largest magnitude, of one block.
KERNEL grad_norm_kernel(const uint64* addresses, const int64* plan, float* partial, int64 tensors, int64 wide,
                        int64 largest) {
  __shared__ float scratch[kUpdateThreads / kWarp];
  const Block block(addresses, tensors, plan);
  const SCALAR* const grads = block.operand<SCALAR>(0);
  float norm = 0;
  block.visit(wide, [&](int64 i, auto size) {
    float grad[decltype(size)::value];
    load_floats(grad, grads + i);
    for (float value : grad) norm = largest ? Max()(norm, fabsf(value)) : fmaf(value, value, norm);
  });
  norm =
      largest ? block_reduce<kUpdateThreads>(norm, Max(), scratch) : block_reduce<kUpdateThreads>(norm, Sum(), scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = norm;
}

// One block joins `count` partial norms. grad_scale, one number, may be null.
KERNEL grad_factor_kernel(const float* partial, const float* grad_scale, float* total_norm, float* grad_factor,
                          int64 count, int64 largest, float max_norm) {
  __shared__ float scratch[kUpdateThreads / kWarp];
  float norm = 0;
  for (int64 i = threadIdx.x; i < count; i += kUpdateThreads)
    norm = largest ? Max()(norm, partial[i]) : norm + partial[i];
  norm =
      largest ? block_reduce<kUpdateThreads>(norm, Max(), scratch) : block_reduce<kUpdateThreads>(norm, Sum(), scratch);
  if (threadIdx.x != 0) return;
  const float scale = grad_scale == nullptr ? 1.0f : *grad_scale;
  const float total = (largest ? norm : sqrtf(norm)) / scale;
  const float factor = max_norm / (total + 1e-6f);
  *total_norm = total;
  *grad_factor = (factor > 1 ? 1.0f : factor) / scale;  // a minimum could turn NaN into 1
}

KERNEL clip_grads_kernel(const uint64* addresses, const int64* plan, const float* grad_factor, int64 tensors,
                         int64 wide) {
  const Block block(addresses, tensors, plan);
  SCALAR* const grads = block.operand<SCALAR>(0);
  const float factor = *grad_factor;
  block.visit(wide, [&](int64 i, auto size) {
    float grad[decltype(size)::value];
    load_gradient(grad, grads + i, factor);
    store_floats(grads + i, grad);
  });
}
