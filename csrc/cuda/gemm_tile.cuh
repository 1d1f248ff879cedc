// A tile of a product on the matrix units of one warp: cp.async into stages, ldmatrix, mma.sync. For sm_80 and up.
//
// An operand lies in shared memory in lines of 128 bytes (8 chunks of 16), chunk c of line l at place c ^ (l % 8):
// copies write, and ldmatrix reads, 8 different places, so 8 lanes meet all 32 banks once.
//   K-major    a line holds 128 bytes of k of one row (M or N index): 64 numbers of 16 bits, 128 of int8
//   MN-major   a line holds 64 rows at one k; blocks of 64 rows follow each other; 16-bit numbers only (ldmatrix
//              transposes units of 16 bits)
// A step is one line of k. Per step a tile loads (block_m + block_n) * 128 bytes and multiplies block_m * block_n *
// 64: 128 x 256 does 85 multiplications a byte (A100's L2 asks for about 60 at full rate), 128 x 128 does 64.
#pragma once

#include <gemm_epilogue.cuh>
#include <gemm_operand.cuh>

constexpr int kLineBytes = 128;
constexpr int kChunks = 8;      // of 16 bytes in a line
constexpr int kBlockRows = 64;  // of 16 bits in a line

DEVICE uint8* chunk_address(uint8* lines, int line, int chunk) {
  return lines + line * kLineBytes + ((chunk ^ (line % kChunks)) << 4);
}

// ---- loading -------------------------------------------------------------------------------------------------------

// A chunk whose numbers lie anywhere.
template <class T>
DEVICE void gather_chunk(uint8* chunk, const T* source, int64 stride, int64 count) {
  constexpr int width = kWidest<T>;
  Vector<T, width> values;
#pragma unroll
  for (int i = 0; i < width; ++i) values.values[i] = i < count ? source[i * stride] : T{};
  store_vector(reinterpret_cast<T*>(chunk), values);
}

// Starts loading k in [first_k, first_k + one line), zeros from last_k on, of tile_rows rows from first_row on.
template <int tile_rows, int threads, class T>
DEVICE void load_k_major(uint8* lines, const Operand<T>& operand, int64 first_row, int64 first_k, int64 last_k) {
  constexpr int width = kWidest<T>, lines_at_once = threads / kChunks;
  static_assert(tile_rows % lines_at_once == 0 || tile_rows < lines_at_once, "a pass covers whole lines");
  constexpr int passes = ceil_div(tile_rows, lines_at_once);
  int line = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  if (line >= tile_rows) return;
  int64 k = first_k + chunk * width, row = first_row + line;
  int count = int(max_of(min_of(last_k - k, int64(width)), int64(0)));
  int rows_left = int(min_of(operand.rows - row, int64(tile_rows)));
  const T* source = operand.pointer + row * operand.row_stride + k * operand.k_stride;
  int64 pass_stride = lines_at_once * operand.row_stride;
  if (operand.layout & kVectors) {
#pragma unroll
    for (int i = 0; i < passes; ++i, source += pass_stride) {
      int inside = i * lines_at_once < rows_left ? count : 0;
      cp_async_16(chunk_address(lines, line + i * lines_at_once, chunk), inside ? source : operand.pointer,
                  inside * int(sizeof(T)));
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < passes; ++i, source += pass_stride)
      gather_chunk(chunk_address(lines, line + i * lines_at_once, chunk), source, operand.k_stride,
                   i * lines_at_once < rows_left ? count : 0);
  }
}

template <int tile_rows, int threads, class T>
DEVICE void load_mn_major(uint8* lines, const Operand<T>& operand, int64 first_row, int64 first_k, int64 last_k) {
  constexpr int width = kWidest<T>, lines_at_once = threads / kChunks, steps_k = kLineBytes / int(sizeof(T));
  static_assert(tile_rows % kBlockRows == 0 && steps_k % lines_at_once == 0, "a pass covers part of one block");
  int line = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const T* source = operand.pointer + (first_k + line) * operand.k_stride + first_row + chunk * width;
#pragma unroll
  for (int i = 0; i < tile_rows / kBlockRows * steps_k / lines_at_once; ++i) {
    int k = i * lines_at_once % steps_k, block = i * lines_at_once / steps_k;
    int64 left = operand.rows - (first_row + block * kBlockRows + chunk * width);
    int inside = first_k + line + k < last_k ? int(max_of(min_of(left, int64(width)), int64(0))) : 0;
    const T* place = source + k * operand.k_stride + block * kBlockRows;
    cp_async_16(chunk_address(lines, line + i * lines_at_once, chunk), inside ? place : operand.pointer,
                inside * int(sizeof(T)));
  }
}

// ---- fragments -----------------------------------------------------------------------------------------------------

// The 16 rows from `row` on and the step-th 32 bytes of k, as the a operand of an mma.
template <bool is_mn_major>
DEVICE void load_a_fragment(uint32 (&a)[4], uint8* lines, int row, int step) {
  int lane = threadIdx.x % kWarp;
  if constexpr (is_mn_major) {
    row += lane / 8 % 2 * 8;
    uint8* block = lines + row / kBlockRows * (kBlockRows * kLineBytes);
    ldmatrix_x4_trans(a, chunk_address(block, step * 16 + lane / 16 * 8 + lane % 8, row % kBlockRows / 8));
  } else {
    ldmatrix_x4(a, chunk_address(lines, row + lane % 16, 2 * step + lane / 16));
  }
}

// The same as the b operands of two mma: b[0], b[1] for the first 8 rows (columns of the product), b[2], b[3].
template <bool is_mn_major>
DEVICE void load_b_fragments(uint32 (&b)[4], uint8* lines, int row, int step) {
  int lane = threadIdx.x % kWarp;
  if constexpr (is_mn_major) {
    row += lane / 16 * 8;
    uint8* block = lines + row / kBlockRows * (kBlockRows * kLineBytes);
    ldmatrix_x4_trans(b, chunk_address(block, step * 16 + lane % 16, row % kBlockRows / 8));
  } else {
    ldmatrix_x4(b, chunk_address(lines, row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
  }
}

template <class T>
struct MatrixUnit {
  typedef float Sum;
  static DEVICE void multiply(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k16<T>(d, a, b); }
};

template <>
struct MatrixUnit<int8> {
  typedef int Sum;
  static DEVICE void multiply(int (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k32_int8(d, a, b); }
};

// ---- the tile ------------------------------------------------------------------------------------------------------

// Warps divide the tile into warps_m x warps_n, and k among warps_k that are added up at the end: a thin tile has no
// other work for so many warps, which it needs to keep enough copies under way.
template <class T, int block_m, int block_n, int warps_m, int warps_n, int warps_k, int stages,
          bool a_is_mn_major = false, bool b_is_mn_major = false>
struct MatrixTile {
  typedef typename MatrixUnit<T>::Sum Sum;
  static constexpr int kThreads = warps_m * warps_n * warps_k * kWarp;
  static constexpr int kBlocksEach = 1;  // that a multiprocessor should hold: shared memory decides
  static constexpr int kLineK = kLineBytes / int(sizeof(T)), kStepK = warps_k * kLineK;
  static constexpr int kTilesM = block_m / warps_m / 16, kPairsN = block_n / warps_n / 16;
  static constexpr int kBytesA = block_m * kLineBytes, kPartBytes = (block_m + block_n) * kLineBytes;
  static constexpr int kStageBytes = warps_k * kPartBytes, kStagedSums = block_m * (block_n + kStagePadding);

  static DEVICE void load(uint8* stage, const Operand<T>& a, const Operand<T>& b, int64 first_row, int64 first_col,
                          int64 first_k, int64 last_k) {
#pragma unroll
    for (int part = 0; part < warps_k; ++part, first_k += kLineK) {
      uint8* a_lines = stage + part * kPartBytes;
      uint8* b_lines = a_lines + kBytesA;
      if constexpr (a_is_mn_major)
        load_mn_major<block_m, kThreads>(a_lines, a, first_row, first_k, last_k);
      else
        load_k_major<block_m, kThreads>(a_lines, a, first_row, first_k, last_k);
      if constexpr (b_is_mn_major)
        load_mn_major<block_n, kThreads>(b_lines, b, first_col, first_k, last_k);
      else
        load_k_major<block_n, kThreads>(b_lines, b, first_col, first_k, last_k);
    }
  }

  // Stages a[first_row.., first_k to last_k] @ b[first_k to last_k, first_col..] in shared memory, for all threads.
  static DEVICE const Sum* multiply(uint8* shared, const Operand<T>& a, const Operand<T>& b, int64 first_row,
                                    int64 first_col, int64 first_k, int64 last_k) {
    int part = threadIdx.x / (kThreads / warps_k), warp = threadIdx.x / kWarp % (warps_m * warps_n);
    int row = warp / warps_n * (block_m / warps_m), col = warp % warps_n * (block_n / warps_n);
    Sum sums[kTilesM][2 * kPairsN][4] = {};

#pragma unroll
    for (int stage = 0; stage < stages - 1; ++stage) {
      int64 k = first_k + stage * kStepK;
      if (k < last_k) load(shared + stage * kStageBytes, a, b, first_row, first_col, k, last_k);
      cp_async_commit();
    }
    int stage = 0;
#pragma unroll 1
    for (int64 k = first_k; k < last_k; k += kStepK) {
      cp_async_wait<stages - 2>();
      __syncthreads();  // this stage has come for all; all have left the stage that is loaded next
      int64 next_k = k + (stages - 1) * kStepK;
      int next_stage = stage == 0 ? stages - 1 : stage - 1;
      if (next_k < last_k) load(shared + next_stage * kStageBytes, a, b, first_row, first_col, next_k, last_k);
      cp_async_commit();
      multiply_lines(sums, shared + stage * kStageBytes + part * kPartBytes, row, col);
      stage = stage == stages - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    __syncthreads();
    Sum* staged = reinterpret_cast<Sum*>(shared);
    stage_sums(sums, staged + part * kStagedSums, row, col);
    __syncthreads();
    if constexpr (warps_k > 1) {
      for (int i = threadIdx.x; i < block_m * block_n; i += kThreads) {
        Sum* sum = staged + i / block_n * (block_n + kStagePadding) + i % block_n;
#pragma unroll
        for (int other = 1; other < warps_k; ++other) *sum += sum[other * kStagedSums];
      }
      __syncthreads();
    }
    return staged;
  }

  static DEVICE void multiply_lines(Sum (&sums)[kTilesM][2 * kPairsN][4], uint8* a_lines, int row, int col) {
#pragma unroll
    for (int step = 0; step < kLineBytes / 32; ++step) {
      uint32 a[kTilesM][4];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) load_a_fragment<a_is_mn_major>(a[i], a_lines, row + i * 16, step);
#pragma unroll
      for (int j = 0; j < kPairsN; ++j) {
        uint32 b[4];
        load_b_fragments<b_is_mn_major>(b, a_lines + kBytesA, col + j * 16, step);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          MatrixUnit<T>::multiply(sums[i][2 * j], a[i], {b[0], b[1]});
          MatrixUnit<T>::multiply(sums[i][2 * j + 1], a[i], {b[2], b[3]});
        }
      }
    }
  }

  static DEVICE void stage_sums(const Sum (&sums)[kTilesM][2 * kPairsN][4], Sum* staged, int row, int col) {
    int lane = threadIdx.x % kWarp;
    Sum* place = staged + (row + lane / 4) * (block_n + kStagePadding) + col + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kPairsN; ++j) {
        Sum* pair = place + i * 16 * (block_n + kStagePadding) + j * 8;
        store_vector(pair, Vector<Sum, 2>{{sums[i][j][0], sums[i][j][1]}});
        store_vector(pair + 8 * (block_n + kStagePadding), Vector<Sum, 2>{{sums[i][j][2], sums[i][j][3]}});
      }
    }
  }
};
