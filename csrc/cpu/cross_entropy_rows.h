// cross_entropy where the classes of a row lie side by side (or anywhere: such rows are copied piece by piece first).
#pragma once

#include <vector>

#include "cross_entropy.h"
#include "parallel.h"

namespace bigkern::xent {

// Classes in one piece: long enough to hide its overhead, short enough that float sums keep their digits.
constexpr int64_t kPiece = 16384;

struct Position {
  int64_t n, d;
};

// Where a row's numbers are; `read` gives [begin, end) of its classes side by side.
template <class T>
class RowReader {
 public:
  explicit RowReader(const Problem<T>& problem) : problem_(problem) {}

  Position position(int64_t row) const { return {row / problem_.inner, row % problem_.inner}; }
  const T* logits(int64_t row) const {
    auto [n, d] = position(row);
    return problem_.input + n * problem_.batch_stride + d * problem_.inner_stride;
  }
  int64_t index_target(int64_t row) const {
    auto [n, d] = position(row);
    return problem_.index[n * problem_.target_batch_stride + d * problem_.target_inner_stride];
  }
  const T* read_logits(int64_t row, int64_t begin, int64_t end) {
    return read(logits(row), problem_.class_stride, begin, end, logits_copy_);
  }
  const T* read_probabilities(int64_t row, int64_t begin, int64_t end) {
    if (!problem_.has_probabilities) return nullptr;
    auto [n, d] = position(row);
    const T* start = problem_.probability + n * problem_.target_batch_stride + d * problem_.target_inner_stride;
    return read(start, problem_.target_class_stride, begin, end, probability_copy_);
  }

 private:
  static const T* read(const T* start, int64_t stride, int64_t begin, int64_t end, std::vector<T>& copy) {
    if (stride == 1) return start + begin;
    copy.resize(kPiece);
    for (int64_t c = begin; c < end; ++c) copy[c - begin] = start[c * stride];
    return copy.data();
  }

  const Problem<T>& problem_;
  std::vector<T> logits_copy_, probability_copy_;
};

// The masses of a piece of classes: spread, or own_share * probability + spread; times weight where there is one.
template <class T>
struct PieceMasses {
  using A = acc_t<T>;
  const T* probability;
  const A* weight;
  A own_share, spread;

  PieceMasses(const Problem<T>& problem, const T* probabilities, int64_t begin)
      : probability(probabilities),
        weight(problem.weight.empty() ? nullptr : problem.weight.data() + begin),
        own_share(problem.own_share),
        spread(problem.spread) {}

  vec<A> at(int64_t i) const {
    vec<A> mass = probability ? load(probability + i) * own_share + spread : broadcast(spread);
    return weight ? vec<A>(mass * load(weight + i)) : mass;
  }
  vec<A> first(int64_t i, int64_t count) const {
    vec<A> mass = probability ? load_partial(probability + i, count) * own_share + spread : broadcast(spread);
    return weight ? vec<A>(mass * load_partial(weight + i, count)) : mass;
  }
};

template <bool kMasses, class T>
RowSums sums_of_piece(const T* x, const PieceMasses<T>& masses, int64_t count) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  LaneSums<A, kMasses> sums;
  int64_t whole = count / kLanes, rest = count % kLanes;
  in_groups(whole, [&](int64_t first, auto group) {
    constexpr int kCount = decltype(group)::value;
    vec<A> values[kCount], mass[kCount];
    for (int k = 0; k < kCount; ++k) {
      values[k] = load(x + (first + k) * kLanes);
      if constexpr (kMasses) mass[k] = masses.at((first + k) * kLanes);
    }
    sums.include(values, mass);
  });
  if (rest) {
    int64_t i = whole * kLanes;
    auto inside = lane_numbers<A>() < broadcast(static_cast<A>(rest));
    vec<A> values[1] = {load_partial(x + i, rest)}, mass[1] = {}, gap = sums.gap;
    values[0] = select(inside, values[0], broadcast(-std::numeric_limits<A>::infinity()));
    if constexpr (kMasses) mass[0] = masses.first(i, rest);
    sums.include(values, mass);
    sums.gap = select(inside, sums.gap, gap);  // outside, 0 * inf
    sums.mass = select(inside, sums.mass, sums.mass - mass[0]);
  }
  return sums_over_lanes(sums);
}

template <bool kMasses, class T>
RowSums sums_of_pieces(const Problem<T>& problem, RowReader<T>& reader, int64_t row, int64_t begin, int64_t end) {
  const T* x = reader.read_logits(row, begin, end);
  PieceMasses<T> masses(problem, reader.read_probabilities(row, begin, end), begin);
  return sums_of_piece<kMasses>(x, masses, end - begin);
}

// The sums of a whole row; `parallel` divides its pieces among threads, and gives the same bits.
template <bool kMasses, class T>
RowSums sums_of_row(const Problem<T>& problem, RowReader<T>& reader, int64_t row, bool parallel) {
  int64_t pieces = (problem.classes + kPiece - 1) / kPiece;
  auto sums_of = [&](RowReader<T>& own_reader, int64_t piece) {
    int64_t begin = piece * kPiece, end = std::min(begin + kPiece, problem.classes);
    return sums_of_pieces<kMasses>(problem, own_reader, row, begin, end);
  };
  if (pieces == 1) return sums_of(reader, 0);  // merging costs two exponentials
  RowSums row_sums;
  if (!parallel) {
    for (int64_t piece = 0; piece < pieces; ++piece) row_sums.include(sums_of(reader, piece));
    return row_sums;
  }
  std::vector<RowSums> parts(pieces);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    RowReader<T> own_reader(problem);
    for (int64_t piece = begin; piece < end; ++piece) parts[piece] = sums_of(own_reader, piece);
  });
  for (const RowSums& part : parts) row_sums.include(part);
  return row_sums;
}

template <class T>
RowSums sums_of_row(const Problem<T>& problem, RowReader<T>& reader, int64_t row, bool parallel) {
  return problem.has_masses() ? sums_of_row<true>(problem, reader, row, parallel)
                              : sums_of_row<false>(problem, reader, row, parallel);
}

// Few rows of many classes: a row is divided among the threads, else the rows are.
template <class T>
bool rows_are_divided(const Problem<T>& problem) {
  return problem.classes >= 2 * kPiece && problem.rows() < 2 * available_threads();
}

// ---- forward ------------------------------------------------------------------------------------------------------

template <class T>
void forward_row(const Problem<T>& problem, RowReader<T>& reader, int64_t row, bool parallel, T* loss, acc_t<T>* lse,
                 Partial& partial) {
  RowSums sums = sums_of_row(problem, reader, row, parallel);
  double log_sum = problem.classes > 0 ? sums.log_sum() : 0, row_loss = 0;
  lse[row] = static_cast<acc_t<T>>(sums.max + log_sum);
  if (problem.has_probabilities) {
    row_loss = sums.gap + sums.mass * log_sum;
    partial.weight += 1;
  } else if (int64_t target = reader.index_target(row); target != problem.ignore_index) {
    if (!problem.in_range(target)) return partial.refuse(target);
    double weight = problem.weight_of(target);
    double own = to_acc(reader.logits(row)[target * problem.class_stride]);
    row_loss = problem.own_share * weight * ((sums.max - own) + log_sum);
    if (problem.has_masses()) row_loss += sums.gap + sums.mass * log_sum;
    partial.weight += weight;
  }
  partial.loss += row_loss;
  if (problem.reduction == Reduction::none) loss[row] = from_acc<T>(static_cast<acc_t<T>>(row_loss));
}

template <class T>
std::vector<Partial> forward_rows(const Problem<T>& problem, T* loss, acc_t<T>* lse) {
  bool divided = rows_are_divided(problem);
  int64_t rows = problem.rows(), rows_per_chunk = std::max<int64_t>(1, kPiece / std::max<int64_t>(problem.classes, 1));
  int64_t chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  std::vector<Partial> partials(chunks);
  parallel_for(chunks, divided ? chunks : 1, [&](int64_t begin, int64_t end) {
    RowReader<T> reader(problem);
    for (int64_t chunk = begin; chunk < end; ++chunk)
      for (int64_t row = chunk * rows_per_chunk; row < std::min((chunk + 1) * rows_per_chunk, rows); ++row)
        forward_row(problem, reader, row, divided, loss, lse, partials[chunk]);
  });
  return partials;
}

// ---- backward -----------------------------------------------------------------------------------------------------

// One row of   grad_input_c = probability_scale * exp(x_c - shift) - scale * mass_c - (c is the target) * own_scale.
template <class A>
struct RowGradient {
  A shift, probability_scale, scale, own_scale = 0;
  A log_sum;  // lse - shift, for the gradient of probabilities
  int64_t target = -1;
  bool is_zero = false;
};

template <class T>
RowGradient<acc_t<T>> gradient_of_row(const Problem<T>& problem, RowReader<T>& reader, int64_t row, bool parallel,
                                      double scale, acc_t<T> lse) {
  using A = acc_t<T>;
  double mass = 0, sum_exp = 1;
  RowGradient<A> gradient;
  gradient.shift = lse;
  gradient.log_sum = 0;
  if (!problem.has_probabilities) {
    int64_t target = reader.index_target(row);
    if (target == problem.ignore_index || !problem.in_range(target)) {
      scale = 0;
      gradient.is_zero = lse - lse == 0;  // PyTorch's gradient of an ignored row is NaN where its logits are not finite
    } else {
      double own_mass = problem.own_share * static_cast<double>(problem.weight_of(target));
      gradient.target = target;
      gradient.own_scale = static_cast<A>(scale * own_mass);
      mass = own_mass;
    }
    if (gradient.is_zero) return gradient;
  }
  bool imprecise = lse_is_imprecise<T>(lse);
  if (problem.has_masses() || imprecise) {
    RowSums sums = sums_of_row(problem, reader, row, parallel);
    mass += sums.mass;
    sum_exp = sums.sum_exp;
    gradient.shift = static_cast<A>(sums.max);
    gradient.log_sum = static_cast<A>(sums.log_sum());
  }
  gradient.scale = static_cast<A>(scale);
  gradient.probability_scale = static_cast<A>(scale * mass / sum_exp);
  return gradient;
}

template <bool kMasses, class T>
void write_gradient(const T* x, const PieceMasses<T>& masses, const RowGradient<acc_t<T>>& gradient, int64_t count,
                    int64_t target, T* grad) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  vec<A> shift = broadcast(gradient.shift), factor = broadcast(gradient.probability_scale);
  int64_t whole = count - count % kLanes;
  auto value = [&](vec<A> logits) { return vec<A>(factor * exp_nonpositive(vec<A>(logits - shift))); };
#pragma GCC unroll 4
  for (int64_t i = 0; i < whole; i += kLanes) {
    vec<A> g = value(load(x + i));
    if constexpr (kMasses) g -= gradient.scale * masses.at(i);
    store(grad + i, g);
  }
  if (whole < count) {
    vec<A> g = value(load_partial(x + whole, count - whole));
    if constexpr (kMasses) g -= gradient.scale * masses.first(whole, count - whole);
    store_partial(grad + whole, g, count - whole);
  }
  if (target >= 0 && target < count) {
    A own = value(broadcast(to_acc(x[target])))[0] - gradient.own_scale;
    if constexpr (kMasses) own -= gradient.scale * masses.first(target, 1)[0];
    grad[target] = from_acc<T>(own);
  }
}

// grad_target_c = scale * own_share * weight_c * (lse - x_c)
template <class T>
void write_target_gradient(const Problem<T>& problem, const T* x, const RowGradient<acc_t<T>>& gradient, int64_t begin,
                           int64_t end, T* grad) {
  using A = acc_t<T>;
  A scale = gradient.scale * problem.own_share;
  for (int64_t c = begin; c < end; ++c) {
    A minus_log_p = (gradient.shift - to_acc(x[c - begin])) + gradient.log_sum;
    grad[c - begin] = from_acc<T>(scale * problem.weight_of(c) * minus_log_p);
  }
}

template <class T>
class GradientWriter {
 public:
  GradientWriter(const Problem<T>& problem, T* grad_input, T* grad_target)
      : problem_(problem), reader_(problem), grad_input_(grad_input), grad_target_(grad_target) {}

  RowReader<T>& reader() { return reader_; }

  void write_piece(int64_t row, const RowGradient<acc_t<T>>& gradient, int64_t piece) {
    int64_t begin = piece * kPiece, end = std::min(begin + kPiece, problem_.classes), count = end - begin;
    T* grad = start(grad_input_, row, begin);
    if (gradient.is_zero) {
      std::memset(static_cast<void*>(grad), 0, static_cast<size_t>(count) * sizeof(T));
    } else {
      const T* x = reader_.read_logits(row, begin, end);
      PieceMasses<T> masses(problem_, reader_.read_probabilities(row, begin, end), begin);
      auto write = problem_.has_masses() ? &write_gradient<true, T> : &write_gradient<false, T>;
      write(x, masses, gradient, count, gradient.target - begin, grad);
    }
    scatter(grad_input_, row, begin, end);
    if (!grad_target_) return;
    write_target_gradient(problem_, reader_.read_logits(row, begin, end), gradient, begin, end,
                          start(grad_target_, row, begin));
    scatter(grad_target_, row, begin, end);
  }

 private:
  // Outputs are contiguous [batch, classes, inner]: classes lie side by side only where inner is 1.
  T* start(T* output, int64_t row, int64_t begin) {
    if (problem_.inner == 1) return output + row * problem_.classes + begin;
    copy_.resize(kPiece);
    return copy_.data();
  }
  void scatter(T* output, int64_t row, int64_t begin, int64_t end) {
    if (problem_.inner == 1) return;
    auto [n, d] = reader_.position(row);
    for (int64_t c = begin; c < end; ++c) output[(n * problem_.classes + c) * problem_.inner + d] = copy_[c - begin];
  }

  const Problem<T>& problem_;
  RowReader<T> reader_;
  T *grad_input_, *grad_target_;
  std::vector<T> copy_;
};

// scale_of(row): the gradient that reaches the row's loss.
template <class T, class ScaleOf>
void backward_rows(const Problem<T>& problem, const ScaleOf& scale_of, const acc_t<T>* lse, T* grad_input,
                   T* grad_target) {
  int64_t rows = problem.rows(), pieces = (problem.classes + kPiece - 1) / kPiece;
  if (rows_are_divided(problem)) {
    for (int64_t row = 0; row < rows; ++row) {
      RowReader<T> reader(problem);
      auto gradient = gradient_of_row(problem, reader, row, true, scale_of(row), lse[row]);
      parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
        GradientWriter<T> writer(problem, grad_input, grad_target);
        for (int64_t piece = begin; piece < end; ++piece) writer.write_piece(row, gradient, piece);
      });
    }
    return;
  }
  parallel_for(rows, std::max<int64_t>(1, kPiece / std::max<int64_t>(problem.classes, 1)),
               [&](int64_t begin, int64_t end) {
                 GradientWriter<T> writer(problem, grad_input, grad_target);
                 for (int64_t row = begin; row < end; ++row) {
                   auto gradient = gradient_of_row(problem, writer.reader(), row, false, scale_of(row), lse[row]);
                   for (int64_t piece = 0; piece < pieces; ++piece) writer.write_piece(row, gradient, piece);
                 }
               });
}

}  // namespace bigkern::xent
