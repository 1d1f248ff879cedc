#include "average_pool.h"
#include "kernels.h"

namespace bigkern {

using namespace average_pool;

void adaptive_avg_pool2d_forward(const Tensor& input, int64_t out_h, int64_t out_w, const Tensor& output) {
  forward(input, output, adaptive(input.sizes[2], out_h), adaptive(input.sizes[3], out_w));
}

void adaptive_avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width, const Tensor& grad_input) {
  backward(grad_output, grad_input, adaptive(height, grad_output.sizes[2]), adaptive(width, grad_output.sizes[3]));
}

}  // namespace bigkern
