#include <stdexcept>

#include "cross_entropy_planes.h"
#include "cross_entropy_rows.h"
#include "dtype.h"
#include "kernels.h"

namespace bigkern {
namespace {

using xent::Partial;
using xent::Problem;
using xent::Reduction;

template <class T>
void forward_typed(const Problem<T>& problem, T* loss, acc_t<T>* lse, acc_t<T>* total_weight) {
  std::vector<Partial> partials = problem.positions_are_contiguous() ? xent::forward_planes(problem, loss, lse)
                                                                     : xent::forward_rows(problem, loss, lse);
  Partial total;
  for (const Partial& partial : partials) {
    // Becomes Python's IndexError, worded as PyTorch's.
    if (partial.has_bad_target)
      throw std::out_of_range("Target " + std::to_string(partial.bad_target) + " is out of bounds.");
    total.loss += partial.loss;
    total.weight += partial.weight;
  }
  if (problem.classes == 0) total.weight = 0;
  *total_weight = static_cast<acc_t<T>>(total.weight);
  if (problem.reduction == Reduction::mean) total.loss /= total.weight;
  if (problem.reduction != Reduction::none) *loss = from_acc<T>(static_cast<acc_t<T>>(total.loss));
}

template <class T>
void backward_typed(const Problem<T>& problem, const Tensor& grad_loss, const acc_t<T>* lse, acc_t<T> total_weight,
                    T* grad_input, T* grad_target) {
  const T* grads = grad_loss.as<const T>();
  bool per_row = problem.reduction == Reduction::none;
  double factor = problem.reduction == Reduction::mean ? 1.0 / static_cast<double>(total_weight) : 1.0;
  auto scale_of = [&](int64_t row) -> double {
    int64_t n = row / problem.inner, d = row % problem.inner;
    return to_acc(per_row ? grads[n * grad_loss.strides[0] + d * grad_loss.strides[1]] : *grads) * factor;
  };
  if (problem.positions_are_contiguous())
    xent::backward_planes(problem, scale_of, lse, grad_input, grad_target);
  else
    xent::backward_rows(problem, scale_of, lse, grad_input, grad_target);
}

}  // namespace

void cross_entropy_forward(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                           const std::string& reduction, double label_smoothing, const Tensor& loss, const Tensor& lse,
                           const Tensor& total_weight) {
  dispatch_floating(input.dtype, "cross_entropy_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem<T> problem(input, target, weight, ignore_index, reduction, label_smoothing);
    forward_typed(problem, loss.as<T>(), lse.as<acc_t<T>>(), total_weight.as<acc_t<T>>());
  });
}

void cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& weight,
                            const Tensor& lse, const Tensor& total_weight, int64_t ignore_index,
                            const std::string& reduction, double label_smoothing, bool needs_target_grad,
                            const Tensor& grad_input, const Tensor& grad_target) {
  dispatch_floating(input.dtype, "cross_entropy_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Problem<T> problem(input, target, weight, ignore_index, reduction, label_smoothing);
    backward_typed(problem, grad_loss, lse.as<const acc_t<T>>(), *total_weight.as<const acc_t<T>>(), grad_input.as<T>(),
                   needs_target_grad ? grad_target.as<T>() : nullptr);
  });
}

}  // namespace bigkern
