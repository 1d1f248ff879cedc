// A tile of an fp32 product in plain multiply-adds.
//
// Not three products of tf32 halves: matrix units cut sums off instead of rounding them, an error that grows with K and
// not with its root as PyTorch's does, and an infinity's lower half would be NaN. So the limit is the fp32 pipe (67
// TFLOP/s on an H100), which 8 x 8 sums a thread reach: 64 multiply-adds for 16 numbers read from shared memory.
// Operands lie there as [k, rows + 4], two buffers of them: the next step is read into registers meanwhile.
#pragma once

#include <gemm_epilogue.cuh>
#include <gemm_operand.cuh>

template <int block_m, int block_n, int block_k, int thread_m, int thread_n>
struct FmaTile {
  typedef float Sum;
  static constexpr int kThreadsN = block_n / thread_n;
  static constexpr int kThreads = block_m / thread_m * kThreadsN;
  static constexpr int kBlocksEach = thread_m * thread_n >= 64 ? 1 : 2;  // that a multiprocessor should hold
  static constexpr int kPieceM = min_of(thread_m, 4), kPieceN = min_of(thread_n, 4);
  static constexpr int kPitchA = block_m + 4, kPitchB = block_n + 4;
  static constexpr int kBufferFloats = block_k * (kPitchA + kPitchB);

  template <int tile_rows>
  struct Fetched {
    static constexpr int kVectorsEach = tile_rows * block_k / 4 / kThreads;
    Vector<float, 4> vectors[kVectorsEach];

    // Where the i-th vector of this thread begins, and whether it runs along the rows.
    static DEVICE void place(int i, bool along_rows, int& row, int& k) {
      int index = threadIdx.x + i * kThreads;
      row = along_rows ? index % (tile_rows / 4) * 4 : index / (block_k / 4);
      k = along_rows ? index / (tile_rows / 4) : index % (block_k / 4) * 4;
    }

    DEVICE void fetch(const Operand<float>& operand, int64 first_row, int64 first_k, int64 last_k) {
      bool along_rows = operand.layout & kMnMajor;
      int64 stride = along_rows ? operand.row_stride : operand.k_stride;
#pragma unroll
      for (int i = 0; i < kVectorsEach; ++i) {
        int tile_row, tile_k;
        place(i, along_rows, tile_row, tile_k);
        int64 row = first_row + tile_row, k = first_k + tile_k;
        int64 inside = along_rows ? operand.rows - row : last_k - k;
        if (along_rows ? k >= last_k : row >= operand.rows) inside = 0;
        const float* source = operand.pointer + row * operand.row_stride + k * operand.k_stride;
        if (inside >= 4 && (operand.layout & kVectors)) {
          vectors[i] = load_vector<4>(source);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) vectors[i].values[j] = j < inside ? source[j * stride] : 0.0f;
        }
      }
    }

    DEVICE void put(float* tile, int layout) const {
      bool along_rows = layout & kMnMajor;
      constexpr int pitch = tile_rows + 4;
#pragma unroll
      for (int i = 0; i < kVectorsEach; ++i) {
        int row, k;
        place(i, along_rows, row, k);
        if (along_rows) {
          store_vector(tile + k * pitch + row, vectors[i]);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) tile[(k + j) * pitch + row] = vectors[i].values[j];
        }
      }
    }
  };

  // A thread's rows (or columns): pieces of 4 that lie apart, so that neighbouring threads read neighbouring 16 bytes.
  template <int count, int piece, int extent>
  static DEVICE void read(float (&values)[count], const float* line, int thread) {
#pragma unroll
    for (int first = 0; first < count; first += piece) {
      Vector<float, piece> part = load_vector<piece>(line + first / piece * (extent * piece / count) + thread * piece);
#pragma unroll
      for (int i = 0; i < piece; ++i) values[first + i] = part.values[i];
    }
  }

  // Stages a[first_row.., first_k to last_k] @ b[first_k to last_k, first_col..] in shared memory, for all threads.
  static DEVICE const float* multiply(uint8* shared, const Operand<float>& a, const Operand<float>& b, int64 first_row,
                                      int64 first_col, int64 first_k, int64 last_k) {
    float* buffers = reinterpret_cast<float*>(shared);
    int thread_row = threadIdx.x / kThreadsN, thread_col = threadIdx.x % kThreadsN;
    float sums[thread_m][thread_n] = {};
    Fetched<block_m> a_next;
    Fetched<block_n> b_next;
    a_next.fetch(a, first_row, first_k, last_k);
    b_next.fetch(b, first_col, first_k, last_k);
    int buffer = 0;
#pragma unroll 1
    for (int64 k = first_k; k < last_k; k += block_k, buffer ^= 1) {
      float* a_tile = buffers + buffer * kBufferFloats;
      float* b_tile = a_tile + block_k * kPitchA;
      a_next.put(a_tile, a.layout);
      b_next.put(b_tile, b.layout);
      __syncthreads();  // also: all have left the other buffer, which is written next
      if (k + block_k < last_k) {
        a_next.fetch(a, first_row, k + block_k, last_k);
        b_next.fetch(b, first_col, k + block_k, last_k);
      }
#pragma unroll
      for (int line = 0; line < block_k; ++line) {
        float a_values[thread_m], b_values[thread_n];
        read<thread_m, kPieceM, block_m>(a_values, a_tile + line * kPitchA, thread_row);
        read<thread_n, kPieceN, block_n>(b_values, b_tile + line * kPitchB, thread_col);
#pragma unroll
        for (int i = 0; i < thread_m; ++i)
#pragma unroll
          for (int j = 0; j < thread_n; ++j) sums[i][j] = fmaf(a_values[i], b_values[j], sums[i][j]);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < thread_m; ++i) {
      int row = i / kPieceM * (block_m * kPieceM / thread_m) + thread_row * kPieceM + i % kPieceM;
#pragma unroll
      for (int j = 0; j < thread_n; j += kPieceN) {
        Vector<float, kPieceN> part;
#pragma unroll
        for (int n = 0; n < kPieceN; ++n) part.values[n] = sums[i][j + n];
        int col = j / kPieceN * (block_n * kPieceN / thread_n) + thread_col * kPieceN;
        store_vector(buffers + row * (block_n + kStagePadding) + col, part);
      }
    }
    __syncthreads();
    return buffers;
  }
};
