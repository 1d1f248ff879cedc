// What follows a tile of a product, however it was multiplied: its place, the sum over splits, bias and activation.
//
// A tile's sums are staged in shared memory as [rows, columns + 8] of their own type. From there threads take pieces of
// 8 columns: neighbours store neighbouring 16 bytes, and the activation's code exists once, not once per accumulator.
#pragma once

#include <activation.cuh>

constexpr int kPiece = 8;         // columns that a thread finishes at a time
constexpr int kStagePadding = 8;  // words after each staged row: rows g = 0..3 of an accumulator meet different banks
constexpr int64 kGroupTiles = 8;  // tile rows that run together, so that both operands' panels stay in L2

struct TilePlace {
  int64 row, col;  // in tiles
};

// The place of the index-th tile: down kGroupTiles rows, then one column on.
DEVICE TilePlace tile_place(int64 index, int64 tiles_m, int64 tiles_n) {
  int64 in_group = kGroupTiles * tiles_n;
  int64 first_row = index / in_group * kGroupTiles;
  int64 rows = min_of(tiles_m - first_row, kGroupTiles);
  int64 place = index % in_group;
  return {first_row + place % rows, place / rows};
}

// Elements from one row of a split's sums to the next: whole pieces, so that they are always read and written as such.
DEVICE int64 partial_pitch(int64 N) { return ceil_div(N, int64(kPiece)) * kPiece; }

// Reads the first `left` of `count` values, zeros for the rest.
template <int count, class T>
DEVICE void load_values(float (&values)[count], const T* pointer, int64 stride, int64 left, bool vectors) {
  constexpr int width = min_of(count, kWidest<T>);
  if (vectors) {  // all are there then, side by side
#pragma unroll
    for (int first = 0; first < count; first += width) {
      Vector<T, width> vector = load_vector<width>(pointer + first);
#pragma unroll
      for (int i = 0; i < width; ++i) values[first + i] = to_float(vector.values[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = i < left ? to_float(pointer[i * stride]) : 0.0f;
  }
}

// Writes `count` values to an aligned place, or the first `left` of them anywhere.
template <int count, class T>
DEVICE void store_values(T* pointer, const float (&values)[count], int64 left, bool vectors) {
  if (vectors) {
    if constexpr (sizeof(T) == 2 && count > 1) {
      Vector<uint32, count / 2> pairs;
#pragma unroll
      for (int i = 0; i < count / 2; ++i) pairs.values[i] = pack<T>(values[2 * i], values[2 * i + 1]);
      store_vector(reinterpret_cast<uint32*>(pointer), pairs);
    } else {
      constexpr int width = min_of(count, kWidest<T>);
#pragma unroll
      for (int first = 0; first < count; first += width) {
        Vector<T, width> vector;
#pragma unroll
        for (int i = 0; i < width; ++i) vector.values[i] = from_float<T>(values[first + i]);
        store_vector(pointer + first, vector);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (i < left) pointer[i] = from_float<T>(values[i]);
  }
}

// output[row, col] = act(z + bias[col]) for contiguous outputs [M, N]; `bias` and `pre_activation` may be null.
template <class T>
struct Epilogue {
  const T* bias;
  T* output;
  T* pre_activation;
  int64 M, N, bias_stride;
  int activation;
  bool vectors;  // rows of the outputs are whole pieces, 16-byte aligned

  // For a whole piece where there are vectors, else for one column.
  template <int count>
  DEVICE void finish(float (&z)[count], int64 row, int64 col) const {
    int64 left = N - col;
    if (bias) {
#pragma unroll
      for (int i = 0; i < count; ++i)
        if (i < left) z[i] += to_float(bias[(col + i) * bias_stride]);
    }
    if (pre_activation) store_values(pre_activation + row * N + col, z, left, count > 1);
    apply_activation(z, activation);
    store_values(output + row * N + col, z, left, count > 1);
  }
};

template <class Sum>
DEVICE void load_sums(Sum (&values)[kPiece], const Sum* source) {
  Vector<Sum, 4> low = load_vector<4>(source), high = load_vector<4>(source + 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = low.values[i], values[4 + i] = high.values[i];
}

// Keeps a piece of one split's sums for the kernel that adds them up: partials [splits, M, partial_pitch(N)].
template <class Sum>
DEVICE void store_partial(Sum* partials, int64 split, const Sum (&values)[kPiece], int64 M, int64 N, int64 row,
                          int64 col) {
  Sum* pointer = partials + (split * M + row) * partial_pitch(N) + col;
  store_vector(pointer, Vector<Sum, 4>{{values[0], values[1], values[2], values[3]}});
  store_vector(pointer + 4, Vector<Sum, 4>{{values[4], values[5], values[6], values[7]}});
}

// Finishes [rows, cols] of a tile staged in shared memory, by `threads` threads: address(row, col) is where a sum lies,
// the next 7 side by side. Sums go to `partials` where it is not null. Rows of outputs that start anywhere take one
// column a thread: neighbours then still write neighbouring numbers.
template <int rows, int cols, int threads, class Sum, class Finish, class Address>
DEVICE void finish_block(const Finish& epilogue, Sum* partials, int64 split, int64 first_row, int64 first_col,
                         Address address) {
  int thread = threadIdx.x % threads;
  if (partials || epilogue.vectors) {
#pragma unroll 1
    for (int index = thread; index < rows * cols / kPiece; index += threads) {
      int row = index / (cols / kPiece), col = index % (cols / kPiece) * kPiece;
      if (first_row + row >= epilogue.M || first_col + col >= epilogue.N) continue;
      Sum sums[kPiece];
      load_sums(sums, address(row, col));
      if (partials)
        store_partial(partials, split, sums, epilogue.M, epilogue.N, first_row + row, first_col + col);
      else
        epilogue.finish(sums, first_row + row, first_col + col);
    }
  } else {
#pragma unroll 1
    for (int index = thread; index < rows * cols; index += threads) {
      int row = index / cols, col = index % cols;
      if (first_row + row >= epilogue.M || first_col + col >= epilogue.N) continue;
      Sum sum[1] = {*address(row, col)};
      epilogue.finish(sum, first_row + row, first_col + col);
    }
  }
}

// The same for a tile staged as [rows, cols + kStagePadding].
template <int rows, int cols, int threads, class Sum, class Finish>
DEVICE void finish_tile(const Finish& epilogue, Sum* partials, int64 split, int64 first_row, int64 first_col,
                        const Sum* staged) {
  finish_block<rows, cols, threads>(epilogue, partials, split, first_row, first_col,
                                    [&](int row, int col) { return staged + row * (cols + kStagePadding) + col; });
}

// One piece, or one column, of the result from its sums over all splits, always added in the same order.
template <int count, class Sum, class Finish>
DEVICE void finish_partials(const Finish& epilogue, const Sum* partials, int64 splits, int64 row, int64 col) {
  Sum sums[count] = {};
  const Sum* pointer = partials + row * partial_pitch(epilogue.N) + col;
#pragma unroll 4
  for (int64 split = 0; split < splits; ++split, pointer += epilogue.M * partial_pitch(epilogue.N)) {
    Sum part[count];
    if constexpr (count == 1)
      part[0] = *pointer;
    else
      load_sums(part, pointer);
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] += part[i];
  }
  epilogue.finish(sums, row, col);
}

// A thread of a grid that covers the result: its piece, or its column where outputs have no vectors.
template <class Sum, class Finish>
DEVICE void sum_splits(const Finish& epilogue, const Sum* partials, int64 splits) {
  int64 width = epilogue.vectors ? kPiece : 1, per_row = ceil_div(epilogue.N, width);
  int64 index = int64(blockIdx.x) * blockDim.x + threadIdx.x;
  int64 row = index / per_row, col = index % per_row * width;
  if (row >= epilogue.M) return;
  if (epilogue.vectors)
    finish_partials<kPiece>(epilogue, partials, splits, row, col);
  else
    finish_partials<1>(epilogue, partials, splits, row, col);
}
