// Exact int8 products of activation rows and weight rows, summed in int32, in the two shapes that int8_linear needs.
//
// - Few rows (`dot_rows`): a vector runs along K, so that each weight row is read once, straight from memory.
// - Many rows (`multiply_tile`): a vector holds one group of K of `kRows` activation rows, and a weight group is
//   broadcast to it. Interleaving the activations costs M * K; the weights, the larger matrix, are used as they lie.
//
// A 32-bit lane adds the products of one group: four of 8 bits with AVX-512 VNNI, two of 16 bits elsewhere (AVX2's
// product of bytes, vpmaddubsw, saturates). VNNI multiplies unsigned by signed: the unsigned side is shifted by 128,
// and 128 * sum(signed side) taken off at the end. The shifted sums may wrap around; modulo 2^32 the difference is
// exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace bigkern::int8_gemm {

constexpr int kRows = lanes<int32_t>;     // activation rows that are interleaved
constexpr int kColumns = lanes<int32_t>;  // weight rows that are handled together
#if defined(__AVX512VNNI__)
using Unsigned = uint8_t;
using Signed = int8_t;
constexpr int32_t kShift = 128;
constexpr int kColumnsInRegisters = 8;
constexpr int kRowsInRegisters = 4;
#else
using Unsigned = int16_t;
using Signed = int16_t;
constexpr int32_t kShift = 0;
constexpr int kColumnsInRegisters = 4;
constexpr int kRowsInRegisters = 2;
#endif
constexpr int kGroup = static_cast<int>(sizeof(int32_t) / sizeof(Signed));
constexpr int kStep = kRows * kGroup;  // values of K in one vector

// Rounded up to whole vectors, at least one: the values past `depth` are zero.
inline int64_t padded_depth(int64_t depth) { return (std::max<int64_t>(depth, 1) + kStep - 1) / kStep * kStep; }

// sums + products of the groups of each lane.
inline vec_i32 dot_add(vec_i32 sums, vec_i32 unsigned_side, vec_i32 signed_side) {
#if defined(__AVX512VNNI__)
  return (vec_i32)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)unsigned_side, (__m512i)signed_side);
#elif defined(__AVX2__)
  return sums + (vec_i32)_mm256_madd_epi16((__m256i)unsigned_side, (__m256i)signed_side);
#elif defined(__SSE2__)
  return sums + (vec_i32)_mm_madd_epi16((__m128i)unsigned_side, (__m128i)signed_side);
#else
  vec_i32 low = ((unsigned_side << 16) >> 16) * ((signed_side << 16) >> 16);
  return sums + low + (unsigned_side >> 16) * (signed_side >> 16);
#endif
}

template <class T>
inline vec_i32 load_groups(const T* values) {
  static_assert(sizeof(T) * kStep == kVectorBytes);
  vec_i32 groups;
  std::memcpy(&groups, values, sizeof(groups));
  return groups;
}
// kStep weights as the unsigned side.
inline vec_i32 load_weights(const int8_t* weights) {
#if defined(__AVX512VNNI__)
  return load_groups(weights) ^ broadcast(int32_t(0x80808080));
#else
  typedef int8_t narrow_t __attribute__((vector_size(kStep)));
  typedef int16_t wide_t __attribute__((vector_size(2 * kStep)));
  narrow_t narrow;
  std::memcpy(&narrow, weights, sizeof(narrow));
  return bit_cast<vec_i32>(__builtin_convertvector(narrow, wide_t));
#endif
}

// ---- lanes ----------------------------------------------------------------------------------------------------------

// Lanes of a and b in turn, from the first half of both or from the second.
template <size_t... lane>
inline vec_i32 interleave(vec_i32 a, vec_i32 b, int half, std::index_sequence<lane...>) {
  constexpr int kHalf = kRows / 2;
#if defined(__clang__)
  return half ? __builtin_shufflevector(a, b, (kHalf + lane / 2 + lane % 2 * kRows)...)
              : __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * kRows)...);
#else
  return half ? __builtin_shuffle(a, b, vec_i32{int32_t(kHalf + lane / 2 + lane % 2 * kRows)...})
              : __builtin_shuffle(a, b, vec_i32{int32_t(lane / 2 + lane % 2 * kRows)...});
#endif
}
inline vec_i32 interleave_low(vec_i32 a, vec_i32 b) { return interleave(a, b, 0, std::make_index_sequence<kRows>()); }
inline vec_i32 interleave_high(vec_i32 a, vec_i32 b) { return interleave(a, b, 1, std::make_index_sequence<kRows>()); }

// rows[i] lane j <- rows[j] lane i: log2 perfect shuffles of the whole matrix.
inline void transpose(vec_i32 (&rows)[kRows]) {
  for (int shuffles = kRows; shuffles > 1; shuffles /= 2) {
    vec_i32 shuffled[kRows];
    for (int i = 0; i < kRows / 2; ++i) {
      shuffled[2 * i] = interleave_low(rows[i], rows[i + kRows / 2]);
      shuffled[2 * i + 1] = interleave_high(rows[i], rows[i + kRows / 2]);
    }
    std::copy(shuffled, shuffled + kRows, rows);
  }
}

// Lane i: the sum of the lanes of rows[i]. The same shuffles as in transpose, adding up as they go.
inline vec_i32 sum_lanes(vec_i32 (&rows)[kRows]) {
  for (int count = kRows / 2; count; count /= 2)
    for (int i = 0; i < count; ++i)
      rows[i] = interleave_low(rows[i], rows[i + count]) + interleave_high(rows[i], rows[i + count]);
  return rows[0];
}

// ---- few rows -------------------------------------------------------------------------------------------------------

// sums[row][first_column + column]: products along K, spread over the lanes.
template <int kRowCount, int kColumnCount>
inline void dot_block(const Signed* activations, int64_t row_stride, const int8_t* const* weights, int64_t depth,
                      int first_column, vec_i32 (*sums)[kColumns]) {
  vec_i32 block[kRowCount][kColumnCount] = {};
  // What the next call reads, kColumns rows on: the processor's own prefetching starts anew with each row.
  const int64_t ahead = (weights[1] - weights[0]) * kColumns;
  auto add = [&](const int8_t* const* values, int64_t weight_offset, int64_t k) {
    vec_i32 columns[kColumnCount];
    for (int column = 0; column < kColumnCount; ++column) {
      columns[column] = load_weights(values[column] + weight_offset);
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(weights[column]) + k + ahead), 0, 2);
    }
    for (int row = 0; row < kRowCount; ++row) {
      vec_i32 activation = load_groups(activations + row * row_stride + k);
      for (int column = 0; column < kColumnCount; ++column)
        block[row][column] = dot_add(block[row][column], columns[column], activation);
    }
  };
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) add(weights, k, k);
  if (k < depth) {
    int8_t tail[kColumnCount][kStep] = {};
    const int8_t* tails[kColumnCount];
    for (int column = 0; column < kColumnCount; ++column) {
      std::memcpy(tail[column], weights[column] + k, static_cast<size_t>(depth - k));
      tails[column] = tail[column];
    }
    add(tails, 0, k);
  }
  for (int row = 0; row < kRowCount; ++row)
    for (int column = 0; column < kColumnCount; ++column) sums[row][first_column + column] = block[row][column];
}

// products[row * kColumns + column] for kRowCount rows of activations [*, padded depth] and kColumns weight rows.
template <int kRowCount>
void dot_rows(const Signed* activations, const int32_t* activation_sums, const int8_t* const* weights, int64_t depth,
              int32_t* products) {
  constexpr int kBlock = 4;
  vec_i32 sums[kRowCount][kColumns];
  for (int column = 0; column < kColumns; column += kBlock)
    dot_block<kRowCount, kBlock>(activations, padded_depth(depth), weights + column, depth, column, sums);
  for (int row = 0; row < kRowCount; ++row) {
    vec_u32 correction = broadcast(uint32_t(kShift) * uint32_t(activation_sums[row]));
    vec_u32 exact = bit_cast<vec_u32>(sum_lanes(sums[row])) - correction;
    std::memcpy(products + row * kColumns, &exact, sizeof(exact));
  }
}

// The same for as many of `rows` rows as registers hold; returns how many.
inline int64_t dot_rows(const Signed* activations, const int32_t* activation_sums, int64_t rows,
                        const int8_t* const* weights, int64_t depth, int32_t* products) {
  if constexpr (kRowsInRegisters == 4) {
    if (rows >= 4) return dot_rows<4>(activations, activation_sums, weights, depth, products), 4;
    if (rows == 3) return dot_rows<3>(activations, activation_sums, weights, depth, products), 3;
  }
  if (rows >= 2) return dot_rows<2>(activations, activation_sums, weights, depth, products), 2;
  return dot_rows<1>(activations, activation_sums, weights, depth, products), 1;
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// Puts row `row` of a tile of kRows rows in its place: tile[group][row][kGroup].
inline void interleave_row(const int8_t* values, int64_t padded, int row, Unsigned* tile) {
  for (int64_t group = 0; group < padded / kGroup; ++group)
    for (int i = 0; i < kGroup; ++i)
      tile[(group * kRows + row) * kGroup + i] = static_cast<Unsigned>(values[group * kGroup + i] + kShift);
}

// kColumns weight rows as the signed side: the rows themselves where that is possible, else copies in `scratch`.
struct WeightBlock {
  const Signed* rows[kColumns];
  vec_u32 correction;  // kShift * sum of each row
};

inline vec_u32 shifted_sums(const Signed* const* rows, int64_t depth) {
  vec_i32 sums[kColumns] = {};
  if constexpr (kShift != 0) {
    const vec_i32 ones = broadcast(int32_t(0x01010101));
    for (int column = 0; column < kColumns; ++column) {
      int64_t k = 0;
      for (; k + kStep <= depth; k += kStep) sums[column] = dot_add(sums[column], ones, load_groups(rows[column] + k));
      Signed tail[kStep] = {};
      std::copy(rows[column] + k, rows[column] + depth, tail);
      sums[column] = dot_add(sums[column], ones, load_groups(tail));
    }
  }
  return bit_cast<vec_u32>(sum_lanes(sums)) * uint32_t(kShift);
}

// scratch: [kColumns, padded depth].
inline WeightBlock weight_block(const int8_t* const* rows, int64_t depth, Signed* scratch) {
  WeightBlock block;
  int64_t padded = padded_depth(depth);
  for (int column = 0; column < kColumns; ++column) {
    if constexpr (sizeof(Signed) == 1) {
      if (depth % kGroup == 0) {
        block.rows[column] = reinterpret_cast<const Signed*>(rows[column]);
        continue;
      }
    }
    Signed* copy = scratch + column * padded;
    std::copy(rows[column], rows[column] + depth, copy);
    std::fill(copy + depth, copy + padded, Signed(0));
    block.rows[column] = copy;
  }
  block.correction = shifted_sums(block.rows, depth);
  return block;
}

// sums[column][tile]: lane = row of the tile.
template <int kTiles>
inline void multiply_block(const Unsigned* const* tiles, const Signed* const* weights, int64_t groups,
                           vec_i32 (*sums)[kTiles]) {
  vec_i32 block[kColumnsInRegisters][kTiles] = {};
  for (int64_t group = 0; group < groups; ++group) {
    vec_i32 activations[kTiles];
    for (int tile = 0; tile < kTiles; ++tile) activations[tile] = load_groups(tiles[tile] + group * kStep);
    for (int column = 0; column < kColumnsInRegisters; ++column) {
      int32_t weight_group;
      std::memcpy(&weight_group, weights[column] + group * kGroup, sizeof(weight_group));
      vec_i32 weight = broadcast(weight_group);
      for (int tile = 0; tile < kTiles; ++tile)
        block[column][tile] = dot_add(block[column][tile], activations[tile], weight);
    }
  }
  for (int column = 0; column < kColumnsInRegisters; ++column)
    for (int tile = 0; tile < kTiles; ++tile) sums[column][tile] = block[column][tile];
}

// products[row * kColumns + column] for kTiles interleaved tiles that lie one after the other.
template <int kTiles>
void multiply_tiles(const Unsigned* tiles, const WeightBlock& weights, int64_t depth, int32_t* products) {
  int64_t tile_size = padded_depth(depth) * kRows, groups = (depth + kGroup - 1) / kGroup;
  const Unsigned* tile_starts[kTiles];
  for (int tile = 0; tile < kTiles; ++tile) tile_starts[tile] = tiles + tile * tile_size;
  vec_i32 sums[kColumns][kTiles];
  for (int column = 0; column < kColumns; column += kColumnsInRegisters)
    multiply_block<kTiles>(tile_starts, weights.rows + column, groups, sums + column);
  for (int tile = 0; tile < kTiles; ++tile) {
    vec_i32 rows[kRows];
    for (int column = 0; column < kColumns; ++column) rows[column] = sums[column][tile];
    transpose(rows);
    for (int row = 0; row < kRows; ++row) {
      vec_u32 exact = bit_cast<vec_u32>(rows[row]) - weights.correction;
      std::memcpy(products + (tile * kRows + row) * kColumns, &exact, sizeof(exact));
    }
  }
}

}  // namespace bigkern::int8_gemm
