// weight_only_linear: floating rows times int8 or int4 weights, which become floating on the way into registers.
//
// With few rows the time is that of reading the weights: 1 or 1/2 byte each. With many it is that of a floating
// product, which then runs on blocks of weights written out in the input's dtype.
#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "dtype.h"
#include "kernels.h"
#include "parallel.h"
#include "workspace.h"

namespace bigkern {
namespace {

constexpr int64_t kFewRows = 16;
constexpr int kTileRows = 4;
constexpr int kTileColumns = 4;
constexpr int64_t kPieceColumns = 32;              // of one piece of work; a multiple of kTileColumns
constexpr int64_t kBlockBytes = int64_t{4} << 20;  // of weights written out at a time
constexpr int64_t kWriteGrain = 1 << 15;           // weights that are worth waking a thread for

// Workspaces (see workspace.h).
struct PackedRows;
struct WrittenWeights;

// The weights: [N, K] in groups of `group` neighbours of a row, (q - zero) * scale.
template <class A>
struct Weights {
  const uint8_t* data;
  int64_t row_bytes, N, K, groups, group;
  bool int4;  // two to a byte, the lower half first
  const A* scale;
  const int32_t* zero;  // null: 0 for int8, 8 for int4

  A scale_of(int64_t n, int64_t g) const { return scale[n * groups + g]; }
  // int8 numbers are read as q + 128, an unsigned byte: GCC widens those in one instruction.
  int32_t stored_zero_of(int64_t n, int64_t g) const {
    return (zero ? zero[n * groups + g] : int4 ? 8 : 0) + (int4 ? 0 : 128);
  }
  const uint8_t* row(int64_t n) const { return data + n * row_bytes; }
};

template <class A>
struct byte_vector {
  typedef uint8_t type __attribute__((vector_size(lanes<A>)));
  typedef uint16_t pairs __attribute__((vector_size(2 * lanes<A>)));
  typedef int32_t wide __attribute__((vector_size(4 * lanes<A>)));
};

// ---- few rows -------------------------------------------------------------------------------------------------------

// A row of the input is laid out as the weights are read: group after group, each padded with zeros to whole vectors.
// For int4, where a vector of bytes holds twice as many weights, the even places of each run come before the odd ones.
template <class A>
int64_t padded_group(const Weights<A>& weights) {
  const int64_t step = weights.int4 ? 2 * lanes<A> : lanes<A>;
  return (weights.group + step - 1) / step * step;
}

template <class T, class A>
void pack_row(const Tensor& input, int64_t row, const Weights<A>& weights, A* packed) {
  const T* from = input.as<T>() + row * input.strides[0];
  const int64_t stride = input.strides[1], padded = padded_group(weights), step = 2 * lanes<A>;
  std::fill(packed, packed + weights.groups * padded, A(0));
  for (int64_t g = 0; g < weights.groups; ++g)
    for (int64_t i = 0; i < weights.group; ++i) {
      const int64_t place = weights.int4 ? i / step * step + i % 2 * lanes<A> + i % step / 2 : i;
      packed[g * padded + place] = to_acc(from[(g * weights.group + i) * stride]);
    }
}

// sums[r * kTileColumns + c] = dot(rows[r], weights of column c)
template <bool Int4, int Rows, class A>
void dot_tile(const Weights<A>& weights, const A* rows, int64_t pitch, const int64_t* columns, A* sums) {
  using Bytes = typename byte_vector<A>::type;
  using Wide = typename byte_vector<A>::wide;
  constexpr int kLanes = lanes<A>;
  const int64_t padded = padded_group(weights), bytes = Int4 ? (weights.group + 1) / 2 : weights.group;
  vec<A> total[Rows * kTileColumns] = {};
  for (int64_t g = 0; g < weights.groups; ++g) {
    vec<A> sum[Rows * kTileColumns] = {};
    const uint8_t* from[kTileColumns];
    int32_t zero[kTileColumns];
    for (int c = 0; c < kTileColumns; ++c) {
      from[c] = weights.row(columns[c]) + g * bytes;
      zero[c] = weights.stored_zero_of(columns[c], g);
    }
    const A* x = rows + g * padded;
    auto add = [&](const A* place, int c, Wide q) {
      const vec<A> w = __builtin_convertvector(q - zero[c], vec<A>);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r * kTileColumns + c] += load(place + r * pitch) * w;
    };
    auto add_bytes = [&](int64_t i, int c, Bytes raw) {
      if constexpr (Int4) {
        add(x + 2 * i, c, __builtin_convertvector(raw & 15, Wide));
        add(x + 2 * i + kLanes, c, __builtin_convertvector(raw >> 4, Wide));
      } else {
        add(x + i, c, __builtin_convertvector(raw ^ 128, Wide));
      }
    };
    int64_t i = 0;
    for (; i + kLanes <= bytes; i += kLanes)
#pragma GCC unroll 4
      for (int c = 0; c < kTileColumns; ++c) {
        Bytes raw;
        std::memcpy(&raw, from[c] + i, kLanes);
        add_bytes(i, c, raw);
      }
    if (i < bytes)
      for (int c = 0; c < kTileColumns; ++c) {
        Bytes raw{};
        std::memcpy(&raw, from[c] + i, static_cast<size_t>(bytes - i));
        add_bytes(i, c, raw);
      }
    for (int c = 0; c < kTileColumns; ++c) {
      const A scale = weights.scale_of(columns[c], g);
      for (int r = 0; r < Rows; ++r) total[r * kTileColumns + c] += scale * sum[r * kTileColumns + c];
    }
  }
  for (int i = 0; i < Rows * kTileColumns; ++i) sums[i] = reduce_add(total[i]);
}

template <bool Int4, class A>
void dot_tile_of(int64_t count, const Weights<A>& weights, const A* rows, int64_t pitch, const int64_t* columns,
                 A* sums) {
  switch (count) {
    case 1: return dot_tile<Int4, 1>(weights, rows, pitch, columns, sums);
    case 2: return dot_tile<Int4, 2>(weights, rows, pitch, columns, sums);
    case 3: return dot_tile<Int4, 3>(weights, rows, pitch, columns, sums);
    default: return dot_tile<Int4, kTileRows>(weights, rows, pitch, columns, sums);
  }
}

template <class T, class A>
void few_rows(const Tensor& input, const Weights<A>& weights, const Tensor& bias, Activation activation,
              const Tensor& output) {
  const int64_t M = input.sizes[0], N = weights.N, pitch = weights.groups * padded_group(weights);
  Lease<PackedRows> lease(M * pitch * sizeof(A));
  A* rows = lease.template as<A>();
  for (int64_t row = 0; row < M; ++row) pack_row<T>(input, row, weights, rows + row * pitch);
  const int64_t pieces = (N + kPieceColumns - 1) / kPieceColumns;
  const double work_per_piece = double(M) * double(kPieceColumns) * double(weights.K);
  const int64_t grain = std::max<int64_t>(1, int64_t(kWorkPerThread / work_per_piece));
  parallel_for(pieces, grain, [&](int64_t begin, int64_t end) {
    A values[kTileRows * kPieceColumns];
    for (int64_t col = begin * kPieceColumns; col < std::min(end * kPieceColumns, N); col += kPieceColumns) {
      const int64_t cols = std::min(kPieceColumns, N - col);
      for (int64_t row = 0; row < M; row += kTileRows) {
        const int64_t count = std::min<int64_t>(kTileRows, M - row);
        std::fill(values, values + kTileRows * kPieceColumns, A(0));
        for (int64_t c = 0; c < cols; c += kTileColumns) {
          int64_t columns[kTileColumns];  // past the last one it is repeated, and its sums are dropped
          for (int i = 0; i < kTileColumns; ++i) columns[i] = col + std::min(c + i, cols - 1);
          A sums[kTileRows * kTileColumns];
          const A* first = rows + row * pitch;
          if (weights.int4)
            dot_tile_of<true>(count, weights, first, pitch, columns, sums);
          else
            dot_tile_of<false>(count, weights, first, pitch, columns, sums);
          for (int64_t r = 0; r < count; ++r)
            for (int i = 0; i < std::min<int64_t>(kTileColumns, cols - c); ++i)
              values[r * kPieceColumns + c + i] = sums[r * kTileColumns + i];
        }
        if (bias.defined())
          for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < cols; ++c)
              values[r * kPieceColumns + c] += to_acc(bias.as<T>()[(col + c) * bias.strides[0]]);
        activate_values(activation, values, count * kPieceColumns);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = 0; c < cols; ++c)
            output.as<T>()[(row + r) * N + col + c] = from_acc<T>(values[r * kPieceColumns + c]);
      }
    }
  });
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// kLanes bytes of int4 pairs -> 2 * kLanes numbers, one to a byte.
template <class A>
void split_pairs(const uint8_t* from, uint8_t* bytes) {
  using Pairs = typename byte_vector<A>::pairs;
  typename byte_vector<A>::type raw;
  std::memcpy(&raw, from, sizeof(raw));
  const Pairs wide = __builtin_convertvector(raw, Pairs);
  const Pairs split = (wide & 15) | (wide >> 4 << 8);
  std::memcpy(bytes, &split, sizeof(split));
}

// Writes count numbers (q - zero) * scale.
template <class T, class A>
void write_group(const uint8_t* from, int64_t count, bool int4, int32_t zero, A scale, T* to) {
  using Bytes = typename byte_vector<A>::type;
  using Wide = typename byte_vector<A>::wide;
  constexpr int kLanes = lanes<A>;
  alignas(64) uint8_t bytes[2 * kLanes];
  for (int64_t k = 0; k < count; k += 2 * kLanes) {
    const int64_t rest = std::min<int64_t>(2 * kLanes, count - k);
    if (int4 && rest == 2 * kLanes)
      split_pairs<A>(from + k / 2, bytes);
    else if (int4)
      for (int64_t i = 0; i < rest; ++i) bytes[i] = from[(k + i) / 2] >> (i % 2 * 4) & 15;
    else
      std::memcpy(bytes, from + k, static_cast<size_t>(rest));
    for (int64_t i = 0; i < rest; i += kLanes) {
      Bytes raw;
      std::memcpy(&raw, bytes + i, kLanes);
      if (!int4) raw ^= 128;
      const vec<A> w = __builtin_convertvector(__builtin_convertvector(raw, Wide) - zero, vec<A>) * scale;
      if (rest - i >= kLanes)
        store(to + k + i, w);
      else
        store_partial(to + k + i, w, rest - i);
    }
  }
}

// Writes rows [first, first + count) of the weights as T.
template <class T, class A>
void write_weights(const Weights<A>& weights, int64_t first, int64_t count, T* written) {
  parallel_for(count, kWriteGrain / (weights.K + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t g = 0; g < weights.groups; ++g) {
        const int64_t k = g * weights.group;
        write_group(weights.row(first + n) + (weights.int4 ? k / 2 : k), weights.group, weights.int4,
                    weights.stored_zero_of(first + n, g), weights.scale_of(first + n, g), written + n * weights.K + k);
      }
  });
}

template <class T, class A>
void many_rows(const Tensor& input, const Weights<A>& weights, const Tensor& bias, const std::string& activation,
               const Tensor& output) {
  const int64_t N = weights.N, K = weights.K;
  const int64_t block = std::clamp<int64_t>(kBlockBytes / (std::max<int64_t>(K, 1) * int64_t{sizeof(T)}), 64, N + 64);
  Lease<WrittenWeights> lease(std::min(block, N) * K * sizeof(T));
  T* written = lease.template as<T>();
  Tensor piece = output, weight = input, piece_bias = bias, nothing = output;
  nothing.ndim = 1;
  nothing.sizes[0] = 0;
  weight.data = written;
  weight.strides[0] = K;
  weight.strides[1] = 1;
  for (int64_t first = 0; first < N; first += block) {
    const int64_t count = std::min(block, N - first);
    write_weights(weights, first, count, written);
    weight.sizes[0] = piece.sizes[1] = count;
    weight.sizes[1] = K;
    piece.strides[0] = N;
    piece.data = output.as<T>() + first;
    if (bias.defined()) {
      piece_bias.sizes[0] = count;
      piece_bias.data = bias.as<T>() + first * bias.strides[0];
    }
    linear_act_forward(input, weight, piece_bias, activation, false, piece, nothing);
  }
}

}  // namespace

void weight_only_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale,
                                const Tensor& weight_zero_point, const Tensor& bias, const std::string& activation,
                                const Tensor& output) {
  if (output.numel() == 0) return;
  dispatch_floating(input.dtype, "weight_only_linear_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const int64_t N = qweight.sizes[0], K = input.sizes[1], groups = weight_scale.sizes[1];
    Weights<A> weights = {qweight.as<const uint8_t>(),
                          qweight.sizes[1],
                          N,
                          K,
                          groups,
                          groups ? K / groups : 0,
                          qweight.dtype == DType::uint8,
                          weight_scale.as<const A>(),
                          weight_zero_point.defined() ? weight_zero_point.as<const int32_t>() : nullptr};
    if (input.sizes[0] <= kFewRows)
      few_rows<T>(input, weights, bias, activation_from_name(activation), output);
    else
      many_rows<T>(input, weights, bias, activation, output);
  });
}

}  // namespace bigkern
