#include <cmath>
#include <limits>

#include "kernels.h"
#include "multi_tensor.h"

namespace bigkern {
namespace {

constexpr int64_t kChunk = 1 << 13;  // elements with a partial sum of their own, whatever the number of threads

typedef float half_vec_f32 __attribute__((vector_size(kVectorBytes / 2)));

// Partial sums of squares in double: neither large gradients nor many of them lose anything.
struct SquareSum {
  vec<double> low{}, high{};
  void add(vec<double> x) { low += x * x; }
  void add(vec<float> x) {
    half_vec_f32 halves[2];
    std::memcpy(halves, &x, sizeof(x));
    vec<double> first = __builtin_convertvector(halves[0], vec<double>);
    vec<double> second = __builtin_convertvector(halves[1], vec<double>);
    low += first * first;
    high += second * second;
  }
  double result() const { return reduce_add(low + high); }
  static double join(double a, double b) { return a + b; }
};

template <class A>
struct LargestMagnitude {
  vec<A> largest{};
  void add(vec<A> x) { largest = max_nan(largest, x < vec<A>{} ? -x : x); }
  double result() const {
    double all = 0;
    for (int lane = 0; lane < lanes<A>; ++lane) all = join(all, largest[lane]);
    return all;
  }
  static double join(double a, double b) { return a != a || a > b ? a : b; }
};

template <class Accumulator, class T>
double reduce_run(const T* values, int64_t count) {
  constexpr int kLanes = lanes<acc_t<T>>;
  Accumulator accumulator;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) accumulator.add(load(values + i));
  if (i < count) accumulator.add(load_partial(values + i, count - i));
  return accumulator.result();
}

template <class Accumulator, class T>
double reduce_chunk(const Tensor& grad, int64_t first, int64_t count) {
  ElementOrder order(grad);
  if (order.fits(grad)) return reduce_run<Accumulator>(grad.as<T>() + first, count);
  T buffer[kWindow];
  double joined = 0;
  for (int64_t done = 0; done < count; done += kWindow) {
    int64_t here = std::min(kWindow, count - done);
    open_window(grad, false, order, first + done, here, buffer);
    joined = Accumulator::join(joined, reduce_run<Accumulator>(buffer, here));
  }
  return joined;
}

}  // namespace

void grad_norm_forward(const TensorList& grads, const Tensor& grad_scale, double norm_type, double max_norm,
                       const Tensor& total_norm, const Tensor& grad_factor) {
  struct Chunk {
    const Tensor* grad;
    int64_t first, count;
  };
  std::vector<Chunk> chunks;
  for (const Tensor& grad : grads)
    for (int64_t first = 0, numel = grad.numel(); first < numel; first += kChunk)
      chunks.push_back({&grad, first, std::min(kChunk, numel - first)});
  bool largest = std::isinf(norm_type);
  std::vector<double> partial(chunks.size());
  parallel_for(static_cast<int64_t>(chunks.size()), kUpdateGrain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[static_cast<size_t>(i)];
      dispatch_floating(chunk.grad->dtype, "grad_norm_forward", [&](auto tag) {
        using T = typename decltype(tag)::type;
        auto reduce = largest ? reduce_chunk<LargestMagnitude<acc_t<T>>, T> : reduce_chunk<SquareSum, T>;
        partial[static_cast<size_t>(i)] = reduce(*chunk.grad, chunk.first, chunk.count);
      });
    }
  });
  double total = 0;
  for (double part : partial) total = largest ? LargestMagnitude<double>::join(total, part) : total + part;
  double scale = grad_scale.defined() ? read_scalar(grad_scale) : 1.0;
  total = (largest ? total : std::sqrt(total)) / scale;
  double factor = max_norm / (total + 1e-6);
  write_scalar(total_norm, total);
  write_scalar(grad_factor, (factor > 1 ? 1 : factor) / scale);
}

void clip_grads_step(const TensorList& grads, const Tensor& grad_factor) {
  double factor = read_scalar(grad_factor);
  if (factor == 1) return;
  over_elements(grads, [&](size_t which, int64_t first, int64_t last) {
    const Tensor& grad = grads[which];
    ElementOrder order(grad);
    bool in_order = order.fits(grad);
    dispatch_floating(grad.dtype, "clip_grads_step", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = acc_t<T>;
      constexpr int kLanes = lanes<A>;
      int64_t window = in_order ? last - first : kWindow;
      T buffer[kWindow];
      for (int64_t done = first; done < last; done += window) {
        int64_t count = std::min(window, last - done), i = 0;
        T* values = open_window(grad, in_order, order, done, count, buffer);
        for (; i + kLanes <= count; i += kLanes) store(values + i, load(values + i) * A(factor));
        if (i < count) store_partial(values + i, load_partial(values + i, count - i) * A(factor), count - i);
        close_window(grad, in_order, order, done, count, values);
      }
    });
  });
}

}  // namespace bigkern
