#include <vector>

#include "cross_entropy.h"
#include "dtype.h"
#include "kernels.h"
#include "parallel.h"

namespace bigkern {
namespace {

// Vectors of classes that are added up before they go into the sums in double.
constexpr int64_t kPieceVectors = 64;

template <class T>
struct Problem {
  using A = acc_t<T>;
  static constexpr int kLanes = lanes<A>;
  const T *student, *teacher;
  int64_t rows, classes;
  double temperature;
  std::string reduction;

  Problem(const Tensor& s, const Tensor& t, double heat, const std::string& how)
      : student(s.as<const T>()),
        teacher(t.as<const T>()),
        rows(s.sizes[0]),
        classes(s.sizes[1]),
        temperature(heat),
        reduction(how) {}

  A cooling() const { return static_cast<A>(1 / temperature); }
  // The loss is what is left of a difference, times temperature^2: of about 1 / temperature^2 where the temperature is
  // high, and of any size in a short row, whose rounding errors do not average out.
  bool needs_double() const { return std::is_same_v<T, float> && (temperature > 4 || classes <= 256); }
  int64_t grain() const { return std::max<int64_t>(1, 16384 / std::max<int64_t>(classes, 1)); }
};

template <class T>
acc_t<T> largest_of(const T* row, int64_t count) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  vec<A> largest = broadcast(xent::kLowest<A>);  // a NaN loses here, and shows in the sums
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) largest = maximum(load(row + c), largest);
  A result = reduce_max(largest);
  for (; c < count; ++c) result = to_acc(row[c]) > result ? to_acc(row[c]) : result;
  return result;
}

// exp for x <= 0, to about 1 ulp; below the normal range 0.
inline vec<float> exp_of_shifted(vec<float> x) { return xent::exp_nonpositive(x); }
inline vec<double> exp_of_shifted(vec<double> x) {
  const vec<double> shifter = broadcast(0x1.8p52);  // the sum's low bits are the nearest integer
  const vec<double> shifted = x * 0x1.71547652b82fep0 + shifter, n = shifted - shifter;
  const vec<double> r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;  // ln2, its first digits exact times n
  constexpr double kTerms[] = {
      1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
      1. / 720,        1. / 120,       1. / 24,       1. / 6,       1. / 2,      1,          1};  // 1 / 13! to 1 / 0!
  vec<double> p = broadcast(kTerms[0]);
#pragma GCC unroll 13
  for (int k = 1; k < 14; ++k) p = p * r + kTerms[k];
  const vec<int64_t> power = (bit_cast<vec<int64_t>>(shifted) << 52) + (int64_t{1023} << 52);
  const vec<double> result = p * bit_cast<vec<double>>(power);
  return select(x < -708.0, vec<double>{}, select(x != x, x, result));
}

// Sums over a row of exponentials of both, shifted by their largest logit, and of the teacher's times the difference.
struct RowSums {
  double student = 0, teacher = 0, cross = 0;
  double loss() const { return cross / teacher + (xent::log_of_sum(student) - xent::log_of_sum(teacher)); }
};

template <class T>
void include_piece(const T* s, const T* t, int64_t count, acc_t<T> s_max, acc_t<T> t_max, acc_t<T> cooling,
                   RowSums& sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  vec<A> s_sums = {}, t_sums = {}, crosses = {};
  auto include = [&](vec<A> s_logits, vec<A> t_logits, auto inside) {
    vec<A> s_shifted = (s_logits - s_max) * cooling, t_shifted = (t_logits - t_max) * cooling;
    vec<A> s_exp = exp_of_shifted(s_shifted), t_exp = exp_of_shifted(t_shifted);
    // Where the teacher gives nothing, the student may give anything: 0 * inf would be NaN.
    vec<A> term = select(t_exp == 0, vec<A>{}, vec<A>(t_exp * (t_shifted - s_shifted)));
    s_sums += select(inside, s_exp, vec<A>{});
    t_sums += select(inside, t_exp, vec<A>{});
    crosses += select(inside, term, vec<A>{});
  };
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) include(load(s + c), load(t + c), vec<A>{} == 0);
  if (const int64_t rest = count - c)
    include(load_partial(s + c, rest), load_partial(t + c, rest),
            xent::lane_numbers<A>() < broadcast(static_cast<A>(rest)));
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.student += s_sums[lane];
    sums.teacher += t_sums[lane];
    sums.cross += crosses[lane];
  }
}

// The loss of a row, without the factor temperature^2; statistics: largest logit and sum of exponentials of both.
template <class T>
double row_loss(const Problem<T>& problem, int64_t row, acc_t<T>* statistics) {
  using A = acc_t<T>;
  const T *s = problem.student + row * problem.classes, *t = problem.teacher + row * problem.classes;
  const A s_max = largest_of(s, problem.classes), t_max = largest_of(t, problem.classes);
  constexpr int64_t kPiece = kPieceVectors * lanes<A>;
  RowSums sums;
  for (int64_t first = 0; first < problem.classes; first += kPiece) {
    const int64_t count = std::min(kPiece, problem.classes - first);
    if constexpr (std::is_same_v<T, float>) {
      if (problem.needs_double()) {
        double wide[2][kPiece];
        std::copy_n(s + first, count, wide[0]);
        std::copy_n(t + first, count, wide[1]);
        include_piece<double>(wide[0], wide[1], count, s_max, t_max, 1 / problem.temperature, sums);
        continue;
      }
    }
    include_piece(s + first, t + first, count, s_max, t_max, problem.cooling(), sums);
  }
  const A kept[4] = {s_max, static_cast<A>(sums.student), t_max, static_cast<A>(sums.teacher)};
  std::copy(kept, kept + 4, statistics);
  return problem.classes == 0 ? 0 : sums.loss();
}

template <class T>
void forward_typed(const Problem<T>& problem, T* loss, acc_t<T>* statistics) {
  std::vector<double> losses(problem.rows);
  parallel_for(problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      losses[row] = problem.temperature * problem.temperature * row_loss(problem, row, statistics + 4 * row);
  });
  if (problem.reduction == "none") {
    for (int64_t row = 0; row < problem.rows; ++row) loss[row] = from_acc<T>(static_cast<acc_t<T>>(losses[row]));
    return;
  }
  double sum = 0;
  for (double value : losses) sum += value;
  if (problem.reduction == "mean") sum /= double(problem.rows);
  *loss = from_acc<T>(static_cast<acc_t<T>>(sum));
}

template <class T>
void backward_typed(const Problem<T>& problem, const T* grad_loss, const acc_t<T>* statistics, T* grad_student) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const bool per_row = problem.reduction == "none";
  const double factor = problem.temperature / (problem.reduction == "mean" ? double(problem.rows) : 1.0);
  parallel_for(problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *s = problem.student + row * problem.classes, *t = problem.teacher + row * problem.classes;
      T* grad = grad_student + row * problem.classes;
      const A s_max = statistics[4 * row], t_max = statistics[4 * row + 2], cooling = problem.cooling();
      const A share = static_cast<A>(to_acc(grad_loss[per_row ? row : 0]) * factor);
      const A s_factor = share / statistics[4 * row + 1], t_factor = share / statistics[4 * row + 3];
      auto slope = [&](vec<A> s_logits, vec<A> t_logits) {
        return vec<A>(xent::exp_nonpositive(vec<A>((s_logits - s_max) * cooling)) * s_factor -
                      xent::exp_nonpositive(vec<A>((t_logits - t_max) * cooling)) * t_factor);
      };
      int64_t c = 0;
      for (; c + kLanes <= problem.classes; c += kLanes) store(grad + c, slope(load(s + c), load(t + c)));
      if (const int64_t rest = problem.classes - c)
        store_partial(grad + c, slope(load_partial(s + c, rest), load_partial(t + c, rest)), rest);
    }
  });
}

}  // namespace

void distillation_loss_forward(const Tensor& student, const Tensor& teacher, double temperature,
                               const std::string& reduction, const Tensor& loss, const Tensor& statistics) {
  dispatch_floating(student.dtype, "distillation_loss_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward_typed(Problem<T>(student, teacher, temperature, reduction), loss.as<T>(), statistics.as<acc_t<T>>());
  });
}

void distillation_loss_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                                const Tensor& statistics, double temperature, const std::string& reduction,
                                const Tensor& grad_student) {
  dispatch_floating(student.dtype, "distillation_loss_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward_typed(Problem<T>(student, teacher, temperature, reduction), grad_loss.as<const T>(),
                   statistics.as<const acc_t<T>>(), grad_student.as<T>());
  });
}

}  // namespace bigkern
