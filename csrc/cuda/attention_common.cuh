// What attention's kernels of both directions share: tiles in shared memory, their products by one warp, masks and
// dropout.
//
// A warp's scores, probabilities and sums are lists of 16 x 8 blocks, each held as mma_m16n8k16 holds its d: with
// g = lane / 4 and t = lane % 4, elements 0 and 1 are row g, columns 2t and 2t + 1; elements 2 and 3 are row g + 8.
#pragma once

#include <common.cuh>
#include <philox.cuh>

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <class T>
constexpr bool kIsFloat = sizeof(T) == 4;

// ---- tiles ----------------------------------------------------------------------------------------------------------

// A tile in shared memory has rows of `dim` elements, a multiple of 16, 16 bytes apart: so the eight rows that ldmatrix
// reads at once come from all 32 banks, and every address is one register and a constant.
template <int dim, class T>
constexpr int kPitch = dim + kWidest<T>;

template <int dim, class T>
DEVICE T* tile_chunk(T* tile, int row, int chunk) {
  return tile + row * kPitch<dim, T> + chunk * kWidest<T>;
}

template <int dim, class T>
DEVICE const T* tile_chunk(const T* tile, int row, int chunk) {
  return tile + row * kPitch<dim, T> + chunk * kWidest<T>;
}

// A matrix [rows, columns] in global memory; `is_aligned` says that rows are contiguous and start at multiples of 16
// bytes.
template <class T>
struct Matrix {
  const T* start;
  int64 row_stride, column_stride;
  int rows, columns;
  bool is_aligned;
};

template <class T>
DEVICE Matrix<T> matrix_of_head(const T* start, int64 batch, int64 head, int64 stride_batch, int64 stride_head,
                                int64 stride_len, int64 stride_dim, int64 len, int64 dim, int64 is_aligned) {
  return {
      start + batch * stride_batch + head * stride_head, stride_len, stride_dim, int(len), int(dim), is_aligned != 0};
}

// Starts loading `tile_rows` rows from `first_row` on, zeros outside the matrix; visible after cp_async_commit, _wait
// and a barrier.
template <int dim, int tile_rows, int threads, class T>
DEVICE void load_tile(T* tile, const Matrix<T>& matrix, int first_row) {
  constexpr int chunks = dim / kWidest<T>, count = tile_rows * chunks;
  if (matrix.is_aligned) {
#pragma unroll 1
    for (int round = 0; round < ceil_div(count, threads); ++round) {
      const int i = round * threads + threadIdx.x;
      if (count % threads != 0 && i >= count) break;
      const int row = i / chunks, chunk = i % chunks;
      const int columns = min_of(matrix.columns - chunk * kWidest<T>, kWidest<T>);
      const bool is_inside = first_row + row < matrix.rows && columns > 0;
      const T* source = matrix.start + (first_row + row) * matrix.row_stride + chunk * kWidest<T>;
      cp_async_16(tile_chunk<dim>(tile, row, chunk), is_inside ? source : matrix.start,
                  is_inside ? columns * int(sizeof(T)) : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += threads) {
      const int row = i / chunks, chunk = i % chunks;
      const T* source = matrix.start + (first_row + row) * matrix.row_stride;
      Vector<T, kWidest<T>> elements = {};
#pragma unroll
      for (int e = 0; e < kWidest<T>; ++e) {
        const int column = chunk * kWidest<T> + e;
        if (first_row + row < matrix.rows && column < matrix.columns)
          elements.values[e] = source[column * matrix.column_stride];
      }
      store_vector(tile_chunk<dim>(tile, row, chunk), elements);
    }
  }
}

// Writes a warp's sums, times `factor` of their row, as rows first_row.. of the contiguous matrix [rows, columns] at
// `start`, by way of `tile`: shared memory of this warp alone, of as many rows.
template <int dim, int m_tiles, int sum_tiles, class T>
DEVICE void store_sums(const float (&sums)[m_tiles][sum_tiles][4], const float (&factor)[m_tiles][2], T* tile, T* start,
                       int first_row, int rows, int columns) {
  constexpr int chunks = dim / kWidest<T>;
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int n = 0; n < dim / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half + lane / 4, column = 8 * n + lane % 4 * 2;
        Vector<T, 2> pair;
#pragma unroll
        for (int e = 0; e < 2; ++e) pair.values[e] = from_float<T>(sums[m][n][2 * half + e] * factor[m][half]);
        store_vector(tile_chunk<dim>(tile, row, column / kWidest<T>) + column % kWidest<T>, pair);
      }
  __syncwarp();
  const bool is_aligned = columns % kWidest<T> == 0;
#pragma unroll 2
  for (int i = lane; i < 16 * m_tiles * chunks; i += kWarp) {
    const int row = i / chunks, column = i % chunks * kWidest<T>;
    if (first_row + row >= rows || column >= columns) continue;
    const auto elements = load_vector<kWidest<T>>(tile_chunk<dim>(tile, row, i % chunks));
    T* target = start + int64(first_row + row) * columns + column;
    if (is_aligned) {
      store_vector(target, elements);
    } else {
#pragma unroll
      for (int e = 0; e < kWidest<T>; ++e)
        if (column + e < columns) target[e] = elements.values[e];
    }
  }
}

// ---- products of one warp -------------------------------------------------------------------------------------------

// scores [16 * m_tiles, 8 * n_tiles] = a @ b^T, both tiles of `dim` columns.
template <int dim, int m_tiles, int n_tiles, class T>
DEVICE void score_product(float (&scores)[m_tiles][n_tiles][4], const T* a, const T* b) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[m][n][e] = 0.0f;
  if constexpr (kIsFloat<T>) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll 2
    for (int chunk = 0; chunk < dim / 4; ++chunk) {
      Vector<float, 4> a_rows[m_tiles][2];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a_rows[m][half] = load_vector<4>(tile_chunk<dim>(a, 16 * m + 8 * half + g, chunk));
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto b_row = load_vector<4>(tile_chunk<dim>(b, 8 * n + 2 * t + e, chunk));
#pragma unroll
          for (int m = 0; m < m_tiles; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int i = 0; i < 4; ++i)
                scores[m][n][2 * half + e] =
                    fmaf(a_rows[m][half].values[i], b_row.values[i], scores[m][n][2 * half + e]);
        }
    }
  } else {
#pragma unroll
    for (int k = 0; k < dim / 16; ++k) {
      uint32 a_part[m_tiles][4];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
        ldmatrix_x4(a_part[m], tile_chunk<dim>(a, 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < n_tiles; n += 2) {
        uint32 b_part[4];
        ldmatrix_x4(b_part, tile_chunk<dim>(b, 8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        const uint32 b_first[2] = {b_part[0], b_part[1]}, b_second[2] = {b_part[2], b_part[3]};
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) {
          mma_m16n8k16<T>(scores[m][n], a_part[m], b_first);
          mma_m16n8k16<T>(scores[m][n + 1], a_part[m], b_second);
        }
      }
    }
  }
}

// sums [16 * m_tiles, dim or wider] += probs [16 * m_tiles, 8 * n_tiles], rounded to T, @ the tile b.
template <int dim, int m_tiles, int n_tiles, int sum_tiles, class T>
DEVICE void value_product(float (&sums)[m_tiles][sum_tiles][4], const float (&probs)[m_tiles][n_tiles][4], const T* b) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (kIsFloat<T>) {
    const int t = lane % 4;
#pragma unroll
    for (int row = 0; row < 8 * n_tiles; ++row) {
      if (row % 2 == 0) __syncwarp();  // else the compiler loads further ahead than registers last
      float weights[m_tiles][2];
      const int owner = (lane & ~3) | (row % 8 / 2);
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weights[m][half] = __shfl_sync(kAllLanes, probs[m][row / 8][2 * half + row % 2], owner);
#pragma unroll
      for (int n = 0; n < dim / 8; ++n) {
        const auto pair = load_vector<2>(tile_chunk<dim>(b, row, 2 * n + t / 2) + t % 2 * 2);
#pragma unroll
        for (int m = 0; m < m_tiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[m][n][e] = fmaf(weights[m][e / 2], pair.values[e % 2], sums[m][n][e]);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < n_tiles; k += 2) {
      uint32 a_part[m_tiles][4];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a_part[m][i] = pack<T>(probs[m][k + i / 2][i % 2 * 2], probs[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < dim / 8; n += 2) {
        uint32 b_part[4];
        ldmatrix_x4_trans(b_part, tile_chunk<dim>(b, 8 * k + lane % 16, n + lane / 16));
        const uint32 b_first[2] = {b_part[0], b_part[1]}, b_second[2] = {b_part[2], b_part[3]};
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) {
          mma_m16n8k16<T>(sums[m][n], a_part[m], b_first);
          mma_m16n8k16<T>(sums[m][n + 1], a_part[m], b_second);
        }
      }
    }
  }
}

// ---- scores ---------------------------------------------------------------------------------------------------------

// As bigkern/cuda/attention.py counts them. kOwnMask: added, of the inputs' dtype.
enum MaskKind { kNoMask = 0, kBoolMask = 1, kFloatMask = 2, kOwnMask = 3 };

// The mask of one head, and what else hides keys from queries.
template <class T>
struct Visibility {
  const uint8* mask;
  int64 kind, stride_q, stride_k;
  int len_q, len_k;
  bool is_causal;

  // The head's part of the mask starts at element `offset`.
  DEVICE Visibility(const void* mask, int64 kind, int64 offset, int64 stride_q, int64 stride_k, int64 len_q,
                    int64 len_k, int64 is_causal)
      : mask(static_cast<const uint8*>(mask)),
        kind(kind),
        stride_q(stride_q),
        stride_k(stride_k),
        len_q(int(len_q)),
        len_k(int(len_k)),
        is_causal(is_causal != 0) {
    this->mask += offset * (kind == kBoolMask ? 1 : kind == kFloatMask ? 4 : int64(sizeof(T)));
  }

  DEVICE bool is_additive() const { return kind >= kFloatMask; }

  DEVICE float operator()(float score, int query, int key) const {
    if (key >= len_k || (is_causal && key > query)) return -kInfinity;
    if (kind == kNoMask || query >= len_q) return score;
    const int64 offset = query * stride_q + key * stride_k;
    if (kind == kBoolMask) return mask[offset] ? score : -kInfinity;
    if (kind == kFloatMask) return score + reinterpret_cast<const float*>(mask)[offset];
    return score + to_float(reinterpret_cast<const T*>(mask)[offset]);
  }
};

// e^x for float32, whose users see the digits that a change of base costs; else 2^(x * to_base_2).
template <class T>
DEVICE float exponential(float x, float to_base_2) {
  if constexpr (kIsFloat<T>) return expf(x);
  return exp2_approx(x * to_base_2);
}

// ---- dropout --------------------------------------------------------------------------------------------------------

// Which probabilities of one head dropout keeps.
struct Dropout {
  uint32 seed_low, seed_high, offset, head, threshold;

  DEVICE Dropout(const int64* rng_state, int64 head, int64 threshold)
      : seed_low(0), seed_high(0), offset(0), head(uint32(head)), threshold(uint32(threshold)) {
    if (rng_state == nullptr) return;
    seed_low = uint32(uint64(rng_state[0]));
    seed_high = uint32(uint64(rng_state[0]) >> 32);
    offset = uint32(uint64(rng_state[1]));
  }

  // Bit i: whether key 4 * quad + i is kept.
  DEVICE uint32 kept_of_quad(int query, int quad) const {
    return words_at_least(threshold, uint32(quad), uint32(query), head, offset, seed_low, seed_high);
  }

  // Of a block of queries x keys at (query, key): bit e says whether element e is kept. Two neighbouring lanes share
  // four keys: each draws for one of their two rows.
  DEVICE uint32 kept(int query, int key) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const uint32 mine = kept_of_quad(query + g + t % 2 * 8, (key + 2 * t) / 4);
    const uint32 other = __shfl_xor_sync(kAllLanes, mine, 1);
    return t % 2 == 0 ? (mine & 3) | (other & 3) << 2 : other >> 2 | (mine & 12);
  }

  // Of a block of keys x queries. Four lanes share four keys and draw for one of their four pairs of them and a query.
  DEVICE uint32 kept_transposed(int query, int key) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const uint32 mine = kept_of_quad(query + 2 * t + g % 2, (key + g + g / 2 % 2 * 8) / 4);
    uint32 result = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32 drawn = __shfl_sync(kAllLanes, mine, (g / 4 * 4 + e) * 4 + t);
      result |= (drawn >> g % 4 & 1) << e;
    }
    return result;
  }
};

// ---- the order of blocks --------------------------------------------------------------------------------------------

// Blocks are ordered by section of `section` heads, whose keys and values stay in the second-level cache together; in
// a section by tile, and only then by head: so the tiles with the most work, the first ones, start first.
struct BlockPlace {
  int tile;
  int64 head;

  DEVICE BlockPlace(int64 block, int64 tiles, int64 heads, int64 section) {
    const int64 first_head = block / (tiles * section) * section, rest = block % (tiles * section);
    const int64 width = min_of(section, heads - first_head);
    tile = int(rest / width);
    head = first_head + rest % width;
  }
};
