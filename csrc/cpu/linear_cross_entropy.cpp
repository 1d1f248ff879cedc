#include "linear_cross_entropy.h"

#include "dtype.h"
#include "kernels.h"

namespace bigkern {
namespace {

using linear_xent::Gradients;
using linear_xent::Problem;
using xent::Reduction;

template <class T>
Gradients<T> wanted(bool input, bool weight, bool bias, const Tensor& grad_input, const Tensor& grad_weight,
                    const Tensor& grad_bias) {
  return {input ? grad_input.as<T>() : nullptr, weight ? grad_weight.as<T>() : nullptr,
          bias ? grad_bias.as<T>() : nullptr};
}

template <class T>
void forward_typed(const Problem<T>& problem, const Gradients<T>& gradients, acc_t<T>* loss) {
  const int64_t rows = problem.batch;
  const double total = problem.reduction == Reduction::mean ? problem.total_weight() : 1;
  std::vector<double> row_loss(rows);
  if (gradients.input || gradients.linear_weight || gradients.linear_bias)
    gradients_of_rows(problem, std::vector<double>(rows, 1 / total), gradients, row_loss.data());
  else
    losses_of_rows(problem, row_loss.data());
  if (problem.reduction == Reduction::none) {
    for (int64_t row = 0; row < rows; ++row) loss[row] = static_cast<acc_t<T>>(row_loss[row]);
    return;
  }
  double sum = 0;
  for (double value : row_loss) sum += value;
  *loss = static_cast<acc_t<T>>(sum / total);
}

template <class T>
void backward_typed(const Problem<T>& problem, const Tensor& grad_loss, const Gradients<T>& gradients) {
  const double total = problem.reduction == Reduction::mean ? problem.total_weight() : 1;
  const int64_t stride = problem.reduction == Reduction::none ? grad_loss.strides[0] : 0;
  std::vector<double> row_scale(problem.batch);
  for (int64_t row = 0; row < problem.batch; ++row)
    row_scale[row] = grad_loss.as<const acc_t<T>>()[row * stride] / total;
  gradients_of_rows(problem, std::move(row_scale), gradients, nullptr);
}

}  // namespace

void linear_cross_entropy_forward(const Tensor& input, const Tensor& linear_weight, const Tensor& linear_bias,
                                  const Tensor& target, const Tensor& weight, int64_t ignore_index,
                                  const std::string& reduction, double label_smoothing, bool needs_input_grad,
                                  bool needs_weight_grad, bool needs_bias_grad, const Tensor& loss,
                                  const Tensor& grad_input, const Tensor& grad_linear_weight,
                                  const Tensor& grad_linear_bias) {
  dispatch_floating(input.dtype, "linear_cross_entropy_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem<T> problem(input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing);
    forward_typed(problem,
                  wanted<T>(needs_input_grad, needs_weight_grad, needs_bias_grad, grad_input, grad_linear_weight,
                            grad_linear_bias),
                  loss.as<acc_t<T>>());
  });
}

void linear_cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& linear_weight,
                                   const Tensor& linear_bias, const Tensor& target, const Tensor& weight,
                                   int64_t ignore_index, const std::string& reduction, double label_smoothing,
                                   bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                                   const Tensor& grad_input, const Tensor& grad_linear_weight,
                                   const Tensor& grad_linear_bias) {
  dispatch_floating(input.dtype, "linear_cross_entropy_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem<T> problem(input, linear_weight, linear_bias, target, weight, ignore_index, reduction, label_smoothing);
    backward_typed(problem, grad_loss,
                   wanted<T>(needs_input_grad, needs_weight_grad, needs_bias_grad, grad_input, grad_linear_weight,
                             grad_linear_bias));
  });
}

}  // namespace bigkern
