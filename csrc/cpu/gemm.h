// Matrix product with an epilogue: C = epilogue(A B) for matrices with any strides, summed in float or double.
//
// Each thread computes its own rectangle of C and packs what it needs of A and B itself: no barriers, and the order in
// which an element is summed does not depend on the number of threads. Within a rectangle, after Goto and van de Geijn,
// "Anatomy of High-Performance Matrix Multiplication" (2008): a block of B stays in L2 while panels of A pass over it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "matrix.h"
#include "microkernel.h"
#include "pack.h"
#include "parallel.h"
#include "thin.h"
#include "workspace.h"

namespace bigkern {

template <class P>
struct Blocking {
  static constexpr int64_t kSteps = 1024 / static_cast<int64_t>(sizeof(P));  // of the depth, in packed values
  static constexpr int64_t kColumns = 8 * kTileColumns<P>;
  static constexpr int64_t kPanels = 8;                      // of kTileRows rows each
  static constexpr int64_t kPackedBytes = int64_t{4} << 20;  // of B, over the whole depth
};

struct Range2d {
  int64_t row_begin, row_end, col_begin, col_end;
};

// How many threads divide the rows and how many the columns.
struct ThreadGrid {
  int64_t rows, cols;
};

// The grid in which the slowest thread has least to do: multiplications, and packing of both operands.
inline ThreadGrid choose_thread_grid(int64_t M, int64_t N, int64_t K, int64_t tile_rows, int64_t tile_cols) {
  double useful = double(M) * double(N) * double(K) / kWorkPerThread;
  int64_t threads = useful < 2 ? 1 : int64_t(std::min<double>(available_threads(), useful));
  auto share = [](int64_t size, int64_t tile, int64_t parts) {
    int64_t tiles = (size + tile - 1) / tile;
    return (tiles + parts - 1) / parts * tile;
  };
  ThreadGrid best = {1, 1};
  double best_cost = 0;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    int64_t cols = threads / rows;
    double m = double(share(M, tile_rows, rows)), n = double(share(N, tile_cols, cols));
    constexpr double kPackCost = 8;  // packing a value, in multiplications
    double cost = m * n + kPackCost * (m + n);
    if (rows == 1 || cost < best_cost) {
      best = {rows, cols};
      best_cost = cost;
    }
  }
  return best;
}

struct GemmWorkspace;

// The epilogue is called as epilogue(row, col, rows, cols, sums, stride) on finished pieces of the product.
template <class Reader, class T, class Epilogue>
void gemm_rectangle(const Matrix<T>& a, const Matrix<T>& b, const Range2d& range, const Epilogue& epilogue) {
  using P = typename Reader::packed;
  using A = typename packed_traits<P>::accumulator;
  using Block = Blocking<P>;
  constexpr int kDepth = packed_traits<P>::depth, kLanes = packed_lanes<P>, kPitch = kRowPitch<P>;

  const int64_t M = range.row_end - range.row_begin, N = range.col_end - range.col_begin;
  const int64_t depth = a.cols, steps = (depth + kDepth - 1) / kDepth;
  // Rows are divided evenly: three panels of 11 instead of 14, 14 and 5.
  const int64_t panels = (M + kTileRows - 1) / kTileRows;
  auto panel_row = [&](int64_t panel) { return range.row_begin + panel * M / panels; };

  const bool one_row_block = panels <= Block::kPanels;
  const int64_t block_steps = std::min(steps, Block::kSteps);
  const int64_t kept_steps = one_row_block ? block_steps : steps;  // of B: packed once for all blocks of rows
  int64_t fitting = Block::kPackedBytes / (std::max<int64_t>(kept_steps, 1) * int64_t{sizeof(P)});
  int64_t block_cols = std::min(Block::kColumns, std::max<int64_t>(fitting, 1));
  block_cols = std::min((block_cols + kTileColumns<P> - 1) / kTileColumns<P> * kTileColumns<P>,
                        (N + kLanes - 1) / kLanes * kLanes);

  const int64_t a_size = std::min(panels, Block::kPanels) * block_steps * kPitch;
  const int64_t b_size = kept_steps * block_cols;
  const int64_t sums_size = std::min(M, Block::kPanels * kTileRows) * block_cols;
  Lease<GemmWorkspace> lease((a_size + b_size) * sizeof(P) + sums_size * sizeof(A));
  A* sums = lease.as<A>();
  P* packed_b = reinterpret_cast<P*>(sums + sums_size);
  P* packed_a = packed_b + b_size;

  for (int64_t col = range.col_begin; col < range.col_end; col += block_cols) {
    const int64_t cols = std::min(block_cols, range.col_end - col);
    for (int64_t first = 0; first < panels; first += Block::kPanels) {
      const int64_t last = std::min(first + Block::kPanels, panels);
      int64_t step = 0;
      do {  // once even where the depth is 0: the epilogue then sees zeros
        const int64_t count = std::min(block_steps, steps - step);
        const int64_t k = step * kDepth, block_depth = std::min(count * kDepth, depth - k);
        P* b_block = packed_b + (one_row_block ? 0 : step * block_cols);
        auto b_panel = [&](int64_t j) { return b_block + j * count; };
        auto width_of = [&](int64_t j) { return std::min<int64_t>(kTileColumns<P>, cols - j); };
        auto vectors_of = [&](int64_t j) { return static_cast<int>((width_of(j) + kLanes - 1) / kLanes); };
        if (first == 0)
          for (int64_t j = 0; j < cols; j += kTileColumns<P>) {
            Strip<T> strip = {b.data + k * b.row_stride + (col + j) * b.col_stride, width_of(j), block_depth,
                              b.col_stride, b.row_stride};
            pack_panel<Reader>(strip, vectors_of(j) * kLanes, b_panel(j));
          }
        for (int64_t panel = first; panel < last; ++panel) {
          const int64_t row = panel_row(panel);
          Strip<T> strip = {a.data + row * a.row_stride + k * a.col_stride, panel_row(panel + 1) - row, block_depth,
                            a.row_stride, a.col_stride};
          pack_panel<Reader>(strip, kPitch, packed_a + (panel - first) * count * kPitch);
        }
        for (int64_t j = 0; j < cols; j += kTileColumns<P>)
          for (int64_t panel = first; panel < last; ++panel) {
            const int64_t row = panel_row(panel), rows = panel_row(panel + 1) - row;
            A* tile = sums + (row - panel_row(first)) * block_cols + j;
            find_microkernel<P>(static_cast<int>(rows), vectors_of(j))(
                count, packed_a + (panel - first) * count * kPitch, b_panel(j), tile, block_cols, step > 0);
            if (step + count >= steps) epilogue(row, col + j, rows, width_of(j), tile, block_cols);
          }
        step += block_steps;
      } while (step < steps);
    }
  }
}

template <class Reader, class T, class Epilogue>
void gemm_packed(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  using P = typename Reader::packed;
  const int64_t M = a.rows, N = b.cols;
  ThreadGrid grid = choose_thread_grid(M, N, a.cols, kTileRows, kTileColumns<P>);
  // Columns are divided at whole tiles, rows anywhere.
  const int64_t col_tiles = (N + kTileColumns<P> - 1) / kTileColumns<P>;
  parallel_for(grid.rows * grid.cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) {
      int64_t i = cell / grid.cols, j = cell % grid.cols;
      Range2d range = {i * M / grid.rows, (i + 1) * M / grid.rows, j * col_tiles / grid.cols * kTileColumns<P>,
                       std::min((j + 1) * col_tiles / grid.cols * kTileColumns<P>, N)};
      if (range.row_begin < range.row_end && range.col_begin < range.col_end)
        gemm_rectangle<Reader>(a, b, range, epilogue);
    }
  });
}

// Where dot products beat packing, as measured on Zen 4: what they save is the packing of B, which weighs less the more
// rows there are; what they pay is summing a tile's lanes, which weighs less the deeper the product.
inline bool is_thin(int64_t M, int64_t K) { return M <= 24 && K >= std::max<int64_t>(64, 16 * M); }

// epilogue(A B); a is [M, K], b is [K, N].
template <class T, class Epilogue>
void gemm(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  const bool thin = b.row_stride == 1 && is_thin(a.rows, a.cols);
#if defined(BIGKERN_BFLOAT16_DOT)
  if constexpr (std::is_same_v<T, bfloat16>)
    if (has_bfloat16_dot())
      return thin ? gemm_thin<ThinKernel<T, bfloat16>>(a, b, epilogue) : gemm_packed<PairReader>(a, b, epilogue);
#endif
  thin ? gemm_thin<ThinKernel<T, acc_t<T>>>(a, b, epilogue) : gemm_packed<WidenReader<T>>(a, b, epilogue);
}

}  // namespace bigkern
