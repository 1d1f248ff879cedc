#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "norm.h"
#include "transpose.h"

namespace bigkern {
namespace {

// The elements of odd or even number of a and then b.
template <int kOdd, class V, int... Lane>
V every_second(V a, V b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * Lane + kOdd)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, vec<Index>{(2 * Lane + kOdd)...});
#endif
}

// cos or sin: [1 or batch, positions, pairs], any floating dtype.
template <class A>
struct Angles {
  const Tensor& table;
  int64_t pairs;

  // The row of one position, as numbers of type A side by side: where it lies, or converted into `scratch`.
  const A* row(int64_t batch, int64_t position, A* scratch) const {
    int64_t start = (table.sizes[0] > 1 ? batch : 0) * table.strides[0] + position * table.strides[1];
    constexpr DType kOwn = sizeof(A) == 8 ? DType::float64 : DType::float32;
    if (table.dtype == kOwn && table.strides[2] == 1) return table.as<const A>() + start;
    dispatch_floating(table.dtype, "rotary_embedding", [&](auto tag) {
      const auto* source = table.as<const typename decltype(tag)::type>() + start;
      for (int64_t i = 0; i < pairs; ++i) scratch[i] = static_cast<A>(to_acc(source[i * table.strides[2]]));
    });
    return scratch;
  }
};

// Pairs (x, y) turn to (x cos - y sin, y cos + x sin); what lies beyond the pairs is copied.
template <class T>
void rotate_halves(const T* input, const acc_t<T>* cos, const acc_t<T>* sin, acc_t<T> sign, int64_t pairs, T* output) {
  norm::over_vectors<acc_t<T>>(pairs, [=](int64_t i, int64_t n) {
    auto x = norm::load_lanes(input + i, n), y = norm::load_lanes(input + pairs + i, n);
    auto c = norm::load_lanes(cos + i, n), s = norm::load_lanes(sin + i, n) * sign;
    norm::store_lanes(output + i, x * c - y * s, n);
    norm::store_lanes(output + pairs + i, y * c + x * s, n);
  });
}

template <class T>
void rotate_neighbours(const T* input, const acc_t<T>* cos, const acc_t<T>* sin, acc_t<T> sign, int64_t pairs,
                       T* output) {
  using A = acc_t<T>;
  constexpr int64_t kLanes = lanes<A>;
  using Lanes = std::make_integer_sequence<int, lanes<A>>;
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    vec<A> low = load(input + 2 * i), high = load(input + 2 * i + kLanes);
    vec<A> x = every_second<0>(low, high, Lanes{}), y = every_second<1>(low, high, Lanes{});
    vec<A> c = load(cos + i), s = load(sin + i) * sign;
    vec<A> turned_x = x * c - y * s, turned_y = y * c + x * s;
    store(output + 2 * i, interleave<0>(turned_x, turned_y, Lanes{}));
    store(output + 2 * i + kLanes, interleave<lanes<A> / 2>(turned_x, turned_y, Lanes{}));
  }
  for (; i < pairs; ++i) {
    A x = to_acc(input[2 * i]), y = to_acc(input[2 * i + 1]), s = sin[i] * sign;
    output[2 * i] = from_acc<T>(x * cos[i] - y * s);
    output[2 * i + 1] = from_acc<T>(y * cos[i] + x * s);
  }
}

// Turns every row of input [batch, heads, length, head_dim] by the angle of its position, times `sign`.
void rotate(const Tensor& input, const Tensor& cos, const Tensor& sin, const Tensor& position_ids, int64_t offset,
            bool interleaved, int sign, const Tensor& output) {
  int64_t heads = input.sizes[1], length = input.sizes[2], columns = input.sizes[3], pairs = cos.sizes[2];
  auto position_of = [&](int64_t batch, int64_t place) {
    if (!position_ids.defined()) return offset + place;
    int64_t at = batch * position_ids.strides[0] + place * position_ids.strides[1];
    return position_ids.dtype == DType::int64 ? position_ids.as<int64_t>()[at] : position_ids.as<int32_t>()[at];
  };
  for (int64_t batch = 0; batch < (position_ids.defined() ? input.sizes[0] : 1); ++batch)
    for (int64_t place = 0; place < length; ++place)
      if (int64_t position = position_of(batch, place); position < 0 || position >= cos.sizes[1])
        throw std::out_of_range("rotary_embedding: position " + std::to_string(position) +
                                " is out of range for cos and sin of " + std::to_string(cos.sizes[1]) + " positions");
  // Along memory: heads of a position, or positions of a head.
  bool heads_inside = input.strides[1] < input.strides[2];
  int64_t outer = heads_inside ? length : heads, inner = heads_inside ? heads : length;
  dispatch_floating(input.dtype, "rotary_embedding", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    Angles<A> cosines{cos, pairs}, sines{sin, pairs};
    int64_t grain = norm::kGrain / std::max<int64_t>(inner * columns, 1) + 1;
    parallel_for(input.sizes[0] * outer, grain, [&](int64_t first, int64_t last) {
      std::vector<A> scratch(static_cast<size_t>(2 * pairs));
      std::vector<T> gathered(static_cast<size_t>(columns));
      for (int64_t item = first; item < last; ++item) {
        int64_t batch = item / outer;
        const A *c = nullptr, *s = nullptr;
        for (int64_t i = 0; i < inner; ++i) {
          int64_t head = heads_inside ? i : item % outer, place = heads_inside ? item % outer : i;
          if (!c || !heads_inside) {
            c = cosines.row(batch, position_of(batch, place), scratch.data());
            s = sines.row(batch, position_of(batch, place), scratch.data() + pairs);
          }
          const T* row =
              input.as<const T>() + batch * input.strides[0] + head * input.strides[1] + place * input.strides[2];
          T* target = output.as<T>() + ((batch * heads + head) * length + place) * columns;
          if (input.strides[3] != 1) {
            for (int64_t j = 0; j < columns; ++j) gathered[j] = row[j * input.strides[3]];
            row = gathered.data();
          }
          interleaved ? rotate_neighbours(row, c, s, A(sign), pairs, target)
                      : rotate_halves(row, c, s, A(sign), pairs, target);
          std::copy(row + 2 * pairs, row + columns, target + 2 * pairs);
        }
      }
    });
  });
}

}  // namespace

void rotary_embedding_forward(const Tensor& input, const Tensor& cos, const Tensor& sin, const Tensor& position_ids,
                              int64_t offset, bool interleaved, const Tensor& output) {
  rotate(input, cos, sin, position_ids, offset, interleaved, 1, output);
}

void rotary_embedding_backward(const Tensor& grad_output, const Tensor& cos, const Tensor& sin,
                               const Tensor& position_ids, int64_t offset, bool interleaved, const Tensor& grad_input) {
  rotate(grad_output, cos, sin, position_ids, offset, interleaved, -1, grad_input);
}

}  // namespace bigkern
