#include "recurrent.h"

#include <array>
#include <type_traits>
#include <utility>

#include "dtype.h"
#include "matrix.h"
#include "pack.h"
#include "parallel.h"
#include "workspace.h"

namespace bigkern {
namespace {

// Rows times vectors of a tile are sums in registers, beside the rows' values and one vector of the weight.
constexpr int kMostVectors = 4;
#if defined(__AVX512F__)
constexpr int kMostRows = 6;
#else
constexpr int kMostRows = 3;
#endif

// ---- one tile -------------------------------------------------------------------------------------------------------

// sums[r][v] = sum over k of left[r][k] * weight[k][v].
template <class A, int Rows, int Vectors>
void tile_product(int64_t depth, const A* left, int64_t pitch, const A* weight, A* sums) {
  constexpr int kLanes = lanes<A>;
  vec<A> sum[Rows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec<A> value[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) value[r] = broadcast(left[r * pitch + k]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      vec<A> column = load(weight + v * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) sum[r][v] += value[r] * column;
    }
    weight += Vectors * kLanes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(sums + (r * Vectors + v) * kLanes, sum[r][v]);
}

template <class A>
using TileProduct = void (*)(int64_t depth, const A* left, int64_t pitch, const A* weight, A* sums);

template <class A, int... Index>
constexpr std::array<TileProduct<A>, sizeof...(Index)> product_table(std::integer_sequence<int, Index...>) {
  return {tile_product<A, Index / kMostVectors + 1, Index % kMostVectors + 1>...};
}

template <class A>
TileProduct<A> find_product(int64_t rows, int64_t vectors) {
  static constexpr auto table = product_table<A>(std::make_integer_sequence<int, kMostRows * kMostVectors>{});
  return table[(rows - 1) * kMostVectors + (vectors - 1)];
}

// ---- the weight -----------------------------------------------------------------------------------------------------

// One vector of the weight's columns, every depth: to[k][0 .. lanes) with `pitch` between depths.
template <class T>
void pack_vector(const Strip<T>& strip, int64_t pitch, acc_t<T>* to) {
  using Reader = WidenReader<T>;
  constexpr int kLanes = lanes<acc_t<T>>;
  if (strip.depth_stride == 1) {
    for (int64_t k = 0; k < strip.depth; k += kLanes) {
      if (strip.width >= kLanes && k + kLanes <= strip.depth)
        pack_square<Reader, true>(strip, 0, kLanes, k, kLanes, static_cast<int>(pitch), to + k * pitch);
      else
        pack_square<Reader, false>(strip, 0, strip.width, k, std::min<int64_t>(kLanes, strip.depth - k),
                                   static_cast<int>(pitch), to + k * pitch);
    }
    return;
  }
  for (int64_t k = 0; k < strip.depth; ++k) {
    if (strip.width_stride == 1) {
      store(to + k * pitch, Reader::along_width(strip, 0, k, strip.width));
    } else {
      for (int64_t w = 0; w < kLanes; ++w) to[k * pitch + w] = w < strip.width ? Reader::one(strip, w, k) : 0;
    }
  }
}

// ---- the loop -------------------------------------------------------------------------------------------------------

struct RecurrentWeight;
struct RecurrentLeft;

// weight is [depth, gates * units]; with several gates a tile holds all gates of one vector of units, else as many
// vectors of units as the registers take.
template <class A>
struct Loop {
  int64_t batch, units, gates, depth, steps;
  const Tensor& weight;
  bool is_transposed;   // weight's rows are the columns of the product
  const Tensor* first;  // the first left operand; null: the first sums are 0
  const RecurrentCell<A>& cell;

  int64_t tile_units() const { return gates > 1 ? lanes<A> : kMostVectors * lanes<A>; }
  int64_t tiles() const { return (units + tile_units() - 1) / tile_units(); }
  int64_t units_of(int64_t tile) const { return std::min(tile_units(), units - tile * tile_units()); }
  int64_t vectors_of(int64_t tile) const { return gates > 1 ? gates : (units_of(tile) + lanes<A> - 1) / lanes<A>; }

  template <class T>
  void pack_tile(int64_t tile, A* to) const {
    const int64_t column_stride = weight.strides[is_transposed ? 0 : 1];
    const int64_t depth_stride = weight.strides[is_transposed ? 1 : 0];
    const int64_t vectors = vectors_of(tile), count = units_of(tile);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t column = tile * tile_units() + (gates > 1 ? v * units : v * lanes<A>);
      const int64_t width = gates > 1 ? count : std::min<int64_t>(lanes<A>, count - v * lanes<A>);
      Strip<T> strip = {weight.as<const T>() + column * column_stride, width, depth, column_stride, depth_stride};
      pack_vector(strip, vectors * lanes<A>, to + v * lanes<A>);
    }
  }

  void run() const {
    const int64_t most_vectors = gates > 1 ? gates : kMostVectors;
    const int64_t tile_size = depth * most_vectors * lanes<A>;
    Lease<RecurrentWeight> weight_lease(tiles() * tile_size * sizeof(A));
    A* packed = weight_lease.template as<A>();
    Lease<RecurrentLeft> left_lease(2 * batch * depth * sizeof(A));
    A* lefts[] = {left_lease.template as<A>(), left_lease.template as<A>() + batch * depth};
    dispatch_floating(weight.dtype, "recurrence", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (std::is_same_v<acc_t<T>, A>) {
        const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(tile_size, 1));
        parallel_for(tiles(), grain, [&](int64_t begin, int64_t end) {
          for (int64_t tile = begin; tile < end; ++tile) pack_tile<T>(tile, packed + tile * tile_size);
        });
        if (first) copy_first<T>(lefts[0]);
      }
    });

    auto step = [&](int64_t s, int64_t first_row, int64_t last_row, int64_t first_tile, int64_t last_tile) {
      A sums[kMostRows * kMostVectors * lanes<A>] = {};
      const A* left = s > 0 || first ? lefts[s % 2] : nullptr;
      A* next = lefts[(s + 1) % 2];
      const int64_t groups = (last_row - first_row + kMostRows - 1) / kMostRows;
      for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        const int64_t vectors = vectors_of(tile);
        for (int64_t group = 0; group < groups; ++group) {
          // Rows are divided evenly: two groups of 4 instead of 6 and 2.
          const int64_t row = first_row + group * (last_row - first_row) / groups;
          const int64_t rows = first_row + (group + 1) * (last_row - first_row) / groups - row;
          if (left) find_product<A>(rows, vectors)(depth, left + row * depth, depth, packed + tile * tile_size, sums);
          cell.run({s, row, rows, tile * tile_units(), units_of(tile), sums, vectors * lanes<A>,
                    left ? left + row * depth : nullptr, next + row * depth, depth});
        }
      }
    };
    const double work_of_step = double(batch) * double(depth) * double(gates * units);
    const int64_t threads = std::max<int64_t>(
        1, std::min<int64_t>(available_threads(), int64_t(work_of_step * double(steps) / kWorkPerThread)));
    // Few rows a thread would read the weight for little work each: then threads divide the units, and meet every step.
    if (batch < 4 * threads && work_of_step >= kWorkPerThread * double(threads)) {
      for (int64_t s = 0; s < steps; ++s)
        parallel_for(tiles(), (tiles() + threads - 1) / threads,
                     [&](int64_t begin, int64_t end) { step(s, 0, batch, begin, end); });
    } else {
      parallel_for(batch, (batch + threads - 1) / threads, [&](int64_t begin, int64_t end) {
        for (int64_t s = 0; s < steps; ++s) step(s, begin, end, 0, tiles());
      });
    }
  }

  template <class T>
  void copy_first(A* to) const {
    for (int64_t row = 0; row < batch; ++row)
      for (int64_t k = 0; k < depth; ++k)
        to[row * depth + k] = to_acc(first->as<const T>()[row * first->strides[0] + k * first->strides[1]]);
  }
};

}  // namespace

template <class A>
void run_recurrence(const Tensor& weight_hh, const Tensor& h0, int64_t length, const RecurrentCell<A>& cell) {
  const int64_t hidden = weight_hh.sizes[1], gates = weight_hh.sizes[0] / std::max<int64_t>(hidden, 1);
  Loop<A>{h0.sizes[0], hidden, gates, hidden, length, weight_hh, true, &h0, cell}.run();
}

template <class A>
void run_recurrence_backward(const Tensor& weight_hh, int64_t batch, int64_t length, const RecurrentCell<A>& cell) {
  Loop<A>{batch, weight_hh.sizes[1], 1, weight_hh.sizes[0], length + 1, weight_hh, false, nullptr, cell}.run();
}

template void run_recurrence(const Tensor&, const Tensor&, int64_t, const RecurrentCell<float>&);
template void run_recurrence(const Tensor&, const Tensor&, int64_t, const RecurrentCell<double>&);
template void run_recurrence_backward(const Tensor&, int64_t, int64_t, const RecurrentCell<float>&);
template void run_recurrence_backward(const Tensor&, int64_t, int64_t, const RecurrentCell<double>&);

}  // namespace bigkern
