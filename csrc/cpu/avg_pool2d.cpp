#include "average_pool.h"
#include "kernels.h"

namespace bigkern {

using namespace average_pool;

namespace {

// The divisor, where there is one, is the share of the rows.
void divide(Windows& rows, int64_t divisor) {
  if (divisor != 0) std::fill(rows.share.begin(), rows.share.end(), 1 / static_cast<double>(divisor));
}

}  // namespace

void avg_pool2d_forward(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, bool /*ceil_mode*/, bool count_include_pad,
                        int64_t divisor_override, const Tensor& output) {
  bool given = divisor_override != 0;
  Windows rows = sliding(input.sizes[2], output.sizes[2], kernel_h, stride_h, pad_h, count_include_pad, given);
  Windows columns = sliding(input.sizes[3], output.sizes[3], kernel_w, stride_w, pad_w, count_include_pad, given);
  divide(rows, divisor_override);
  forward(input, output, rows, columns);
}

void avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w,
                         int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, bool /*ceil_mode*/,
                         bool count_include_pad, int64_t divisor_override, const Tensor& grad_input) {
  bool given = divisor_override != 0;
  Windows rows = sliding(height, grad_output.sizes[2], kernel_h, stride_h, pad_h, count_include_pad, given);
  Windows columns = sliding(width, grad_output.sizes[3], kernel_w, stride_w, pad_w, count_include_pad, given);
  divide(rows, divisor_override);
  backward(grad_output, grad_input, rows, columns);
}

}  // namespace bigkern
