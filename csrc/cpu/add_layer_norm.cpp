#include "kernels.h"
#include "norm_backward.h"
#include "norm_forward.h"
#include "row_dropout.h"

namespace bigkern {
namespace {

using norm::kPiece;
using norm::Rows;

static_assert(kPiece % RowDropout::kColumns == 0);

// residual + dropout(input), rounded to T, as a source of rows; kept in `sum` where that is not null.
template <class T>
struct SumSource {
  Rows<T> input, residual;
  RowDropout dropout;
  T* sum;

  const T* first(int64_t row, int64_t begin, int64_t count, T* scratch) const {
    using A = acc_t<T>;
    T input_scratch[kPiece], residual_scratch[kPiece];
    const T* x = input.piece(row, begin, count, input_scratch);
    const T* r = residual.piece(row, begin, count, residual_scratch);
    T* target = sum ? sum + row * input.columns + begin : scratch;
    if (!dropout.active) {
      norm::over_vectors<A>(count, [=](int64_t i, int64_t n) {
        norm::store_lanes(target + i, norm::load_lanes(r + i, n) + norm::load_lanes(x + i, n), n);
      });
      return target;
    }
    A factors[kPiece];
    dropout.factors(row, begin, count, factors);
    const A* factor = factors;
    norm::over_vectors<A>(count, [=](int64_t i, int64_t n) {
      vec<A> kept = norm::load_lanes(x + i, n) * norm::load_lanes(factor + i, n);
      norm::store_lanes(target + i, norm::load_lanes(r + i, n) + kept, n);
    });
    return target;
  }
  const T* again(int64_t row, int64_t begin, int64_t count, T* scratch) const {
    return sum ? sum + row * input.columns + begin : first(row, begin, count, scratch);
  }
};

// Adds the gradient that the sum has of its own, and writes what reaches residual and, through dropout, input.
template <class T>
struct SumSink {
  using A = acc_t<T>;
  const Tensor& grad_sum;
  RowDropout dropout;
  T* grad_residual;
  T* grad_input;
  int64_t columns;

  int64_t offset = 0;
  const T* own = nullptr;
  T own_scratch[kPiece];
  A factors[kPiece];

  SumSink(const Tensor& grad_sum, const RowDropout& dropout, T* grad_residual, T* grad_input, int64_t columns)
      : grad_sum(grad_sum), dropout(dropout), grad_residual(grad_residual), grad_input(grad_input), columns(columns) {}

  void begin(int64_t row, int64_t column, int64_t count) {
    if (!grad_residual) return;
    offset = row * columns + column;
    if (grad_sum.defined()) own = Rows<T>(grad_sum).piece(row, column, count, own_scratch);
    if (dropout.active) dropout.factors(row, column, count, factors);
  }
  void store(int64_t i, vec<A> gradient, int64_t n) {
    if (!grad_residual) return;
    if (own) gradient += norm::load_lanes(own + i, n);
    norm::store_lanes(grad_residual + offset + i, gradient, n);
    if (dropout.active)
      norm::store_lanes(grad_input + offset + i, vec<A>(gradient * norm::load_lanes(factors + i, n)), n);
  }
};

}  // namespace

void add_layer_norm_forward(const Tensor& input, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                            const Tensor& rng_state, double eps, double dropout_p, bool save_sum, const Tensor& output,
                            const Tensor& sum, const Tensor& mean, const Tensor& rstd) {
  dispatch_floating(input.dtype, "add_layer_norm_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    SumSource<T> source{Rows<T>(input), Rows<T>(residual), RowDropout(rng_state, dropout_p),
                        save_sum ? sum.as<T>() : nullptr};
    norm::forward<true, T>(source, input.sizes[0], input.sizes[1], weight, bias, eps,
                           {output.as<T>(), mean.as<A>(), rstd.as<A>()});
  });
}

void add_layer_norm_backward(const Tensor& grad_output, const Tensor& grad_sum, const Tensor& sum, const Tensor& weight,
                             const Tensor& /*bias*/, const Tensor& mean, const Tensor& rstd, const Tensor& rng_state,
                             double dropout_p, bool needs_sum_grad, bool needs_weight_grad, bool needs_bias_grad,
                             const Tensor& grad_input, const Tensor& grad_residual, const Tensor& grad_weight,
                             const Tensor& grad_bias) {
  dispatch_floating(sum.dtype, "add_layer_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    RowDropout dropout(rng_state, dropout_p);
    T* residual_target = needs_sum_grad ? grad_residual.as<T>() : nullptr;
    norm::backward<true, T>(
        {grad_output, sum, weight, mean, rstd, needs_weight_grad, needs_bias_grad, grad_weight, grad_bias},
        [&] { return SumSink<T>(grad_sum, dropout, residual_target, grad_input.as<T>(), sum.sizes[1]); });
  });
}

}  // namespace bigkern
