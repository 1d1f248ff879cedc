// The loss of a linear layer without its logits: a tile of them is reduced as soon as it is computed, and where a
// gradient is wanted a chunk of rows exists at a time.
#pragma once

#include <stdexcept>
#include <vector>

#include "cross_entropy_rows.h"
#include "tile_sink.h"

namespace bigkern::linear_xent {

using xent::LaneSums;
using xent::PieceMasses;
using xent::Reduction;
using xent::RowSums;

// Classes whose sums are kept apart; fixed, so that results do not depend on the number of threads.
constexpr int64_t kPieceClasses = 2048;
// Rows of a task: enough to pay for packing the weight's rows, few enough that their sums stay in the L2 cache.
constexpr int64_t kTaskRows = 256, kFewestTaskRows = 32;
// Logits of one chunk of rows, where a gradient is wanted: 32 MiB, but enough rows for an efficient product.
constexpr int64_t kChunkBytes = int64_t{32} << 20, kFewestChunkRows = 128, kMostChunkRows = 512;

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <class T>
struct Problem : xent::Problem<acc_t<T>> {
  using A = acc_t<T>;
  Matrix<T> x, linear_weight;  // [rows, features], [classes, features]
  std::vector<A> bias;         // [classes], or empty

  Problem(const Tensor& input, const Tensor& weight_matrix, const Tensor& linear_bias, const Tensor& target,
          const Tensor& class_weight, int64_t ignored, const std::string& reduction, double label_smoothing)
      : xent::Problem<A>(logits_of(input, weight_matrix), target, class_weight, ignored, reduction, label_smoothing),
        x(matrix(input)),
        linear_weight(matrix(weight_matrix)) {
    if (linear_bias.defined()) {
      bias.resize(this->classes);
      for (int64_t c = 0; c < this->classes; ++c) bias[c] = to_acc(linear_bias.as<T>()[c * linear_bias.strides[0]]);
    }
    // Before any work is done. Becomes Python's IndexError, worded as PyTorch's.
    for (int64_t row = 0; row < this->batch; ++row)
      if (!is_ignored(row) && !this->in_range(target_of(row)))
        throw std::out_of_range("Target " + std::to_string(target_of(row)) + " is out of bounds.");
  }

  int64_t target_of(int64_t row) const { return this->index[row * this->target_batch_stride]; }
  bool is_ignored(int64_t row) const { return target_of(row) == this->ignore_index; }
  const A* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
  // What "mean" divides by.
  double total_weight() const {
    double total = 0;
    for (int64_t row = 0; row < this->batch; ++row)
      if (!is_ignored(row)) total += this->weight_of(target_of(row));
    return total;
  }
  double loss_of_row(int64_t row, const RowSums& sums, A own_logit) const {
    if (is_ignored(row)) return 0;
    double log_sum = sums.log_sum(), own = this->own_share * static_cast<double>(this->weight_of(target_of(row)));
    double loss = own * ((sums.max - own_logit) + log_sum);
    return this->has_masses() ? loss + (sums.gap + sums.mass * log_sum) : loss;
  }

 private:
  static Matrix<T> matrix(const Tensor& t) {
    return {t.as<const T>(), t.sizes[0], t.sizes[1], t.strides[0], t.strides[1]};
  }
  static Tensor logits_of(const Tensor& input, const Tensor& weight_matrix) {
    Tensor logits;
    logits.ndim = 3;
    logits.sizes[0] = input.sizes[0];
    logits.sizes[1] = weight_matrix.sizes[0];
    logits.sizes[2] = 1;
    return logits;
  }
};

// ---- loss alone -----------------------------------------------------------------------------------------------------

// Takes the logits of some rows into their sums, tile by tile.
template <class T, bool kMasses>
struct SumsSink final : TileSink<acc_t<T>> {
  using A = acc_t<T>;
  static constexpr int kLanes = lanes<A>;
  const Problem<T>& problem;
  int64_t row_begin;
  LaneSums<A, kMasses>* sums_of_row;
  A* own_logit;  // [rows of the problem]

  SumsSink(const Problem<T>& p, int64_t begin, LaneSums<A, kMasses>* sums, A* own)
      : problem(p), row_begin(begin), sums_of_row(sums), own_logit(own) {}

  void operator()(int64_t row, int64_t col, int64_t rows, int64_t cols, const A* tile, int64_t pitch) const override {
    const PieceMasses<A> masses(problem, nullptr, col);
    const A* bias = problem.bias.empty() ? nullptr : problem.bias.data() + col;
    for (int64_t r = 0; r < rows; ++r) {
      const A* logits = tile + r * pitch;
      LaneSums<A, kMasses> sums = sums_of_row[row - row_begin + r];
      if (cols == 2 * kLanes)
        include<2>(sums, logits, bias, masses);
      else
        include_columns(sums, logits, bias, masses, cols);
      sums_of_row[row - row_begin + r] = sums;
      const int64_t own = problem.target_of(row + r) - col;
      if (own >= 0 && own < cols) own_logit[row + r] = logits[own] + (bias ? bias[own] : A(0));
    }
  }

  template <int kCount>
  static void include(LaneSums<A, kMasses>& sums, const A* logits, const A* bias, const PieceMasses<A>& masses,
                      int64_t first = 0) {
    vec<A> x[kCount], m[kCount] = {};
    for (int k = 0; k < kCount; ++k) {
      const int64_t c = first + k * kLanes;
      x[k] = load(logits + c);
      if (bias) x[k] += load(bias + c);
      if constexpr (kMasses) m[k] = masses.at(c);
    }
    sums.include(x, m);
  }

  static void include_columns(LaneSums<A, kMasses>& sums, const A* logits, const A* bias, const PieceMasses<A>& masses,
                              int64_t cols) {
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) include<1>(sums, logits, bias, masses, c);
    const int64_t rest = cols - c;
    if (rest == 0) return;
    auto inside = xent::lane_numbers<A>() < broadcast(static_cast<A>(rest));
    vec<A> x[1] = {load_partial(logits + c, rest)}, m[1] = {}, gap = sums.gap;
    if (bias) x[0] += load_partial(bias + c, rest);
    x[0] = select(inside, x[0], broadcast(-std::numeric_limits<A>::infinity()));
    if constexpr (kMasses) m[0] = select(inside, masses.first(c, rest), vec<A>{});
    sums.include(x, m);
    sums.gap = select(inside, sums.gap, gap);  // outside, 0 * inf
  }
};

// Fills row_sums [pieces, rows] and own_logit [rows].
template <bool kMasses, class T>
void sums_of_all_rows(const Problem<T>& problem, RowSums* row_sums, acc_t<T>* own_logit) {
  const int64_t rows = problem.batch, pieces = ceil_div(problem.classes, kPieceClasses);
  // Rows are independent: how they are divided may follow the number of threads.
  const int64_t wanted_blocks = ceil_div(2 * available_threads(), std::max<int64_t>(pieces, 1));
  const int64_t task_rows = std::clamp(ceil_div(rows, wanted_blocks), kFewestTaskRows, kTaskRows);
  const int64_t blocks = ceil_div(rows, task_rows);
  const Matrix<T> weight_t = transposed(problem.linear_weight);
  auto task = [&](int64_t number) {
    const int64_t piece = number / blocks, row = number % blocks * task_rows, col = piece * kPieceClasses;
    const Range2d range = {row, std::min(row + task_rows, rows), col, std::min(col + kPieceClasses, problem.classes)};
    std::vector<LaneSums<acc_t<T>, kMasses>> sums(range.row_end - row);
    product_of_rectangle<T>(problem.x, weight_t, range, SumsSink<T, kMasses>(problem, row, sums.data(), own_logit));
    for (int64_t r = row; r < range.row_end; ++r) row_sums[piece * rows + r] = xent::sums_over_lanes(sums[r - row]);
  };
  const double work = double(rows) * double(problem.classes) * double(std::max<int64_t>(problem.x.cols, 1));
  if (work < 2 * kWorkPerThread)
    for (int64_t number = 0; number < blocks * pieces; ++number) task(number);
  else
    parallel_for_dynamic(blocks * pieces, task);
}

struct RowSumsWorkspace;

// row_loss [rows] in double.
template <class T>
void losses_of_rows(const Problem<T>& problem, double* row_loss) {
  const int64_t rows = problem.batch, pieces = ceil_div(problem.classes, kPieceClasses);
  Lease<RowSumsWorkspace> lease(static_cast<size_t>(rows * pieces) * sizeof(RowSums));
  RowSums* row_sums = lease.template as<RowSums>();
  std::vector<acc_t<T>> own_logit(rows);
  if (problem.has_masses())
    sums_of_all_rows<true>(problem, row_sums, own_logit.data());
  else
    sums_of_all_rows<false>(problem, row_sums, own_logit.data());
  parallel_for(rows, 512, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      RowSums sums = pieces > 0 ? row_sums[row] : RowSums{};
      for (int64_t piece = 1; piece < pieces; ++piece) sums.include(row_sums[piece * rows + row]);
      row_loss[row] = problem.loss_of_row(row, sums, own_logit[row]);
    }
  });
}

// ---- gradients ------------------------------------------------------------------------------------------------------

// Where they go; null: not wanted. All contiguous.
template <class T>
struct Gradients {
  T *input, *linear_weight, *linear_bias;
};

// Replaces a row's logits by their gradient, scale * (mass * softmax - masses), in T at the front of the same memory;
// its sums come back, for the loss.
template <bool kMasses, class T>
RowSums gradient_of_row(const Problem<T>& problem, int64_t row, double scale, acc_t<T>* logits) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const int64_t classes = problem.classes;
  RowSums sums;
  for (int64_t c = 0; c < classes; c += xent::kPiece)
    sums.include(xent::sums_of_piece<kMasses>(logits + c, PieceMasses<A>(problem, nullptr, c),
                                              std::min(xent::kPiece, classes - c)));
  const int64_t target = problem.is_ignored(row) ? -1 : problem.target_of(row);
  double own_mass = target < 0 ? 0 : problem.own_share * static_cast<double>(problem.weight_of(target));
  if (target < 0) scale = 0;
  const A max = static_cast<A>(sums.max), factor = static_cast<A>(scale * (own_mass + sums.mass) / sums.sum_exp);
  const PieceMasses<A> masses(problem, nullptr, 0);
  T* grad = reinterpret_cast<T*>(logits);
  auto value = [&](vec<A> x, vec<A> mass) {
    vec<A> g = factor * xent::exp_nonpositive(vec<A>(x - max));
    return kMasses ? vec<A>(g - static_cast<A>(scale) * mass) : g;
  };
  double own = 0;
  if (target >= 0) {  // in double: a sure prediction's gradient is what is left of two near numbers
    const double own_exp = xent::exp_nonpositive(broadcast(A(logits[target] - max)))[0];
    const double all = own_mass + (kMasses ? double(masses.first(target, 1)[0]) : 0);
    own = scale * ((own_mass + sums.mass) * (own_exp / sums.sum_exp) - all);
  }
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes)
    store(grad + c, value(load(logits + c), kMasses ? masses.at(c) : vec<A>{}));
  if (const int64_t rest = classes - c)
    store_partial(grad + c, value(load_partial(logits + c, rest), kMasses ? masses.first(c, rest) : vec<A>{}), rest);
  if (target >= 0) grad[target] = from_acc<T>(static_cast<A>(own));
  return sums;
}

// sums[c] += grads[:, c]: a few rows at a time in T's accumulator, and those in double.
template <class T>
void add_column_sums(const Matrix<T>& grads, double* sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  constexpr int64_t kRows = 32;
  const int64_t grain = ceil_div(xent::kPiece, grads.rows * kLanes);
  parallel_for(ceil_div(grads.cols, kLanes), grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kLanes; c < std::min(end * kLanes, grads.cols); c += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, grads.cols - c);
      for (int64_t first = 0; first < grads.rows; first += kRows) {
        vec<A> sum = {};
        for (int64_t r = first; r < std::min(first + kRows, grads.rows); ++r)
          sum += load_partial(grads.data + r * grads.row_stride + c, count);
        for (int64_t lane = 0; lane < count; ++lane) sums[c + lane] += sum[lane];
      }
    }
  });
}

struct LogitsWorkspace;
struct WeightSumsWorkspace;

// The gradients of sum(row_scale * loss), and row_loss [rows] where it is not null.
template <class T>
void gradients_of_rows(const Problem<T>& problem, std::vector<double> row_scale, const Gradients<T>& gradients,
                       double* row_loss) {
  using A = acc_t<T>;
  const int64_t rows = problem.batch, classes = problem.classes, features = problem.x.cols;
  const int64_t bytes_of_row = std::max<int64_t>(classes, 1) * int64_t{sizeof(A)};
  const int64_t chunk_rows =
      std::min(std::clamp(kChunkBytes / bytes_of_row, kFewestChunkRows, kMostChunkRows), std::max<int64_t>(rows, 1));
  Lease<LogitsWorkspace> lease(static_cast<size_t>(chunk_rows * bytes_of_row));
  A* logits = lease.template as<A>();

  // Probabilities of many classes times one row's share of a mean leave half's range: they are scaled back at the end.
  double factor = 1;
  if constexpr (std::is_same_v<T, half>) {
    double largest = 0;
    for (double scale : row_scale) largest = std::max(largest, std::abs(scale));
    if (largest > 0 && std::isfinite(largest)) factor = largest;
    for (double& scale : row_scale) scale /= factor;
  }
  // Sums over the chunks: in the output itself where its dtype is the one to sum in.
  const bool sums_in_place = std::is_same_v<T, A>;
  const int64_t weight_size = gradients.linear_weight ? classes * features : 0;
  Lease<WeightSumsWorkspace> sums_lease(sums_in_place ? 0 : static_cast<size_t>(weight_size) * sizeof(A));
  A* weight_sums = sums_in_place ? reinterpret_cast<A*>(gradients.linear_weight) : sums_lease.template as<A>();
  std::vector<double> bias_sums(gradients.linear_bias ? classes : 0);
  if (rows == 0) std::fill_n(weight_sums, weight_size, A(0));

  for (int64_t first = 0; first < rows; first += chunk_rows) {
    const int64_t count = std::min(chunk_rows, rows - first);
    Matrix<T> x = problem.x;
    x.data += first * x.row_stride;
    x.rows = count;
    StoreSink<A> logits_sink(logits, classes);
    logits_sink.bias = problem.bias_or_null();
    product<T>(x, transposed(problem.linear_weight), logits_sink);
    parallel_for(count, std::max<int64_t>(1, xent::kPiece / std::max<int64_t>(classes, 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     A* row = logits + r * classes;
                     const int64_t target = problem.target_of(first + r);
                     const A own = problem.in_range(target) ? row[target] : A(0);
                     auto gradient = problem.has_masses() ? &gradient_of_row<true, T> : &gradient_of_row<false, T>;
                     RowSums sums = gradient(problem, first + r, row_scale[first + r], row);
                     if (row_loss) row_loss[first + r] = problem.loss_of_row(first + r, sums, own);
                   }
                 });
    const int64_t grad_pitch = classes * int64_t{sizeof(A) / sizeof(T)};
    Matrix<T> grad_logits = {reinterpret_cast<const T*>(logits), count, classes, grad_pitch, 1};
    if (gradients.input) {
      StoreSink<T> sink(gradients.input + first * features, features);
      sink.factor = static_cast<A>(factor);
      product<T>(grad_logits, problem.linear_weight, sink);
    }
    if (gradients.linear_weight) {
      StoreSink<A> sink(weight_sums, features);
      sink.add = first > 0;
      product<T>(transposed(grad_logits), x, sink);
    }
    if (gradients.linear_bias) add_column_sums(grad_logits, bias_sums.data());
  }
  if (!sums_in_place && gradients.linear_weight)
    parallel_for(classes, std::max<int64_t>(1, 65536 / std::max<int64_t>(features, 1)),
                 [&](int64_t begin, int64_t end) {
                   StoreSink<T>::store_row(gradients.linear_weight + begin * features, weight_sums + begin * features,
                                           nullptr, static_cast<A>(factor), (end - begin) * features, false);
                 });
  for (size_t c = 0; c < bias_sums.size(); ++c)
    gradients.linear_bias[c] = from_acc<T>(static_cast<A>(bias_sums[c] * factor));
}

}  // namespace bigkern::linear_xent
