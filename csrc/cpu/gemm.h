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
#include "thin_rows.h"
#include "workspace.h"

namespace bigkern {

// Block sizes, for a level-2 cache of 512 KiB or more. Steps count packed values along the depth.
template <class P>
struct Blocking {
  static constexpr int64_t kSteps = 2048 / static_cast<int64_t>(sizeof(P));
  static constexpr int64_t kColumns = 8 * kTileColumns<P>;
  static constexpr int64_t kMostColumns = 64 * kTileColumns<P>;  // where the depth is small
  static constexpr int64_t kPanels = 8;                          // of kTileRows rows each
  static constexpr int64_t kPackedBytes = int64_t{4} << 20;      // of B, over the whole depth
  static constexpr int64_t kShallowSteps = 64;
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

// A matrix as one side of the product: its rows (of A, or of B transposed) are packed side by side.
//
// What else can pack itself in this way can be multiplied, too: `width` rows of `depth` values, of which `pack` writes
// [step][pitch] for `steps` steps from `step` on; rows beyond the last wanted are there to fill whole vectors.
template <class Reader, class T>
class MatrixOperand {
  static constexpr int64_t kDepth = packed_traits<typename Reader::packed>::depth;

 public:
  explicit MatrixOperand(const Matrix<T>& rows) : rows_(rows) {}
  int64_t width() const { return rows_.rows; }
  int64_t depth() const { return rows_.cols; }

  // Where memory runs along the width, a few steps of all panels at a time: whole rows are read, not strips of them.
  int64_t packing_steps(int64_t count) const {
    return rows_.row_stride == 1 && rows_.col_stride != 1 ? std::min<int64_t>(16, count) : count;
  }

  void pack(int64_t first, int64_t width, int64_t step, int64_t steps, int64_t pitch,
            typename Reader::packed* panel) const {
    const int64_t k = step * kDepth, depth = std::min(steps * kDepth, rows_.cols - k);
    Strip<T> strip = {rows_.data + first * rows_.row_stride + k * rows_.col_stride, width, depth, rows_.row_stride,
                      rows_.col_stride};
    pack_panel<Reader>(strip, static_cast<int>(pitch), panel);
  }

 private:
  const Matrix<T> rows_;
};

// One thread's rectangle of the product. The epilogue is called as epilogue(row, col, rows, cols, sums, sums_pitch) on
// finished tiles.
template <class P, class OperandA, class OperandB, class Epilogue>
class RectangleProduct {
  using A = typename packed_traits<P>::accumulator;
  using Block = Blocking<P>;
  static constexpr int64_t kDepth = packed_traits<P>::depth, kLanes = packed_lanes<P>, kPitch = kRowPitch<P>;
  static constexpr int64_t kTileCols = kTileColumns<P>;

 public:
  RectangleProduct(const OperandA& a, const OperandB& b, const Range2d& range, const Epilogue& epilogue)
      : a_(a), b_(b), range_(range), epilogue_(epilogue) {
    const int64_t M = range.row_end - range.row_begin, N = range.col_end - range.col_begin;
    steps_ = (a.depth() + kDepth - 1) / kDepth;
    panels_ = (M + kTileRows - 1) / kTileRows;
    block_steps_ = std::min(steps_, Block::kSteps);
    // B is packed once for all blocks of rows, so a second block asks for its whole depth to be kept.
    keeps_b_ = panels_ > Block::kPanels;
    const int64_t kept_steps = std::max<int64_t>(keeps_b_ ? steps_ : block_steps_, 1);
    int64_t cols = std::min(Block::kColumns * Block::kSteps / std::max<int64_t>(block_steps_, 1), Block::kMostColumns);
    cols = std::min(cols, Block::kPackedBytes / (kept_steps * int64_t{sizeof(P)}));
    cols = std::max(cols / kTileCols * kTileCols, kTileCols);
    block_cols_ = std::min(cols, (N + kLanes - 1) / kLanes * kLanes);
    // Sums outlive a tile only where the depth takes several blocks.
    sums_pitch_ = steps_ > block_steps_ ? block_cols_ : kTileCols;
    sums_size_ = sums_pitch_ * (steps_ > block_steps_ ? std::min(M, Block::kPanels * kTileRows) : kTileRows);
    b_size_ = kept_steps * block_cols_;
  }

  void run() {
    const int64_t a_size = std::min(panels_, Block::kPanels) * block_steps_ * kPitch;
    Lease<GemmWorkspace> lease(sums_size_ * sizeof(A) + (b_size_ + a_size) * sizeof(P));
    sums_ = lease.template as<A>();
    packed_b_ = reinterpret_cast<P*>(sums_ + sums_size_);
    packed_a_ = packed_b_ + b_size_;
    for (int64_t col = range_.col_begin; col < range_.col_end; col += block_cols_) {
      const int64_t cols = std::min(block_cols_, range_.col_end - col);
      for (int64_t panel = 0; panel < panels_; panel += Block::kPanels) {
        const int64_t last_panel = std::min(panel + Block::kPanels, panels_);
        int64_t step = 0;
        do {  // once even where the depth is 0: the epilogue then sees zeros
          const int64_t count = std::min(block_steps_, steps_ - step);
          P* b_block = packed_b_ + (keeps_b_ ? step * block_cols_ : 0);
          if (panel == 0) pack_b(col, cols, step, count, b_block);
          pack_a(panel, last_panel, step, count);
          multiply(col, cols, panel, last_panel, step, count, b_block);
          step += block_steps_;
        } while (step < steps_);
      }
    }
  }

 private:
  // Rows are divided evenly: three panels of 11 instead of 14, 14 and 5.
  int64_t panel_row(int64_t panel) const {
    return range_.row_begin + panel * (range_.row_end - range_.row_begin) / panels_;
  }
  static int64_t tile_cols(int64_t cols, int64_t j) { return std::min(kTileCols, cols - j); }
  static int tile_vectors(int64_t cols, int64_t j) {
    return static_cast<int>((tile_cols(cols, j) + kLanes - 1) / kLanes);
  }

  void pack_b(int64_t col, int64_t cols, int64_t step, int64_t count, P* block) const {
    const int64_t stride = std::max<int64_t>(b_.packing_steps(count), 1);
    for (int64_t s = 0; s < count; s += stride) {
      for (int64_t j = 0; j < cols; j += kTileCols) {
        const int64_t pitch = tile_vectors(cols, j) * kLanes;
        b_.pack(col + j, tile_cols(cols, j), step + s, std::min(stride, count - s), pitch,
                block + j * count + s * pitch);
      }
    }
  }

  void pack_a(int64_t first, int64_t last, int64_t step, int64_t count) const {
    const int64_t stride = std::max<int64_t>(a_.packing_steps(count), 1);
    for (int64_t s = 0; s < count; s += stride) {
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t row = panel_row(panel);
        // Whole vectors pack faster: rows that follow the panel's own come along, and nobody reads them.
        a_.pack(row, std::min<int64_t>(kPitch, a_.width() - row), step + s, std::min(stride, count - s), kPitch,
                packed_a_ + ((panel - first) * count + s) * kPitch);
      }
    }
  }

  void multiply(int64_t col, int64_t cols, int64_t first, int64_t last, int64_t step, int64_t count,
                const P* b_block) const {
    auto tile = [&](int64_t panel, int64_t j) {
      const int64_t row = panel_row(panel), rows = panel_row(panel + 1) - row;
      A* sums = sums_ + (steps_ > block_steps_ ? (row - panel_row(first)) * sums_pitch_ + j : 0);
      find_microkernel<P>(static_cast<int>(rows), tile_vectors(cols, j))(
          count, packed_a_ + (panel - first) * count * kPitch, b_block + j * count, sums, sums_pitch_, step > 0);
      if (step + count >= steps_) epilogue_(row, col + j, rows, tile_cols(cols, j), sums, sums_pitch_);
    };
    if (count <= Block::kShallowSteps) {  // bound by writing C: along its rows
      for (int64_t panel = first; panel < last; ++panel)
        for (int64_t j = 0; j < cols; j += kTileCols) tile(panel, j);
    } else {  // a panel of B stays in L1
      for (int64_t j = 0; j < cols; j += kTileCols)
        for (int64_t panel = first; panel < last; ++panel) tile(panel, j);
    }
  }

  const OperandA& a_;
  const OperandB& b_;
  const Range2d range_;
  const Epilogue& epilogue_;
  int64_t steps_, panels_, block_steps_, block_cols_;
  int64_t sums_pitch_, sums_size_, b_size_;
  bool keeps_b_;
  A* sums_ = nullptr;
  P* packed_a_ = nullptr;
  P* packed_b_ = nullptr;
};

// epilogue(A B) for operands that pack themselves into values of type P.
template <class P, class OperandA, class OperandB, class Epilogue>
void multiply_operands(const OperandA& a, const OperandB& b, const Epilogue& epilogue) {
  const int64_t M = a.width(), N = b.width();
  ThreadGrid grid = choose_thread_grid(M, N, a.depth(), kTileRows, kTileColumns<P>);
  // Columns are divided at whole tiles, rows anywhere.
  const int64_t col_tiles = (N + kTileColumns<P> - 1) / kTileColumns<P>;
  parallel_for(grid.rows * grid.cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) {
      int64_t i = cell / grid.cols, j = cell % grid.cols;
      Range2d range = {i * M / grid.rows, (i + 1) * M / grid.rows, j * col_tiles / grid.cols * kTileColumns<P>,
                       std::min((j + 1) * col_tiles / grid.cols * kTileColumns<P>, N)};
      if (range.row_begin < range.row_end && range.col_begin < range.col_end)
        RectangleProduct<P, OperandA, OperandB, Epilogue>(a, b, range, epilogue).run();
    }
  });
}

template <class Reader, class T, class Epilogue>
void gemm_packed(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  MatrixOperand<Reader, T> rows(a), cols(transposed(b));
  multiply_operands<typename Reader::packed>(rows, cols, epilogue);
}

// Calls body(reader) with the way in which this processor multiplies T: bfloat16 in pairs where it can.
template <class T, class Body>
void with_reader(const Body& body) {
#if defined(BIGKERN_BFLOAT16_DOT)
  if constexpr (std::is_same_v<T, bfloat16>)
    if (has_bfloat16_dot()) return body(PairReader{});
#endif
  body(WidenReader<T>{});
}

// Where dot products beat packing, as measured on Zen 4: what they save is the packing of B, which weighs less the more
// rows there are; what they pay is summing a tile's lanes, which weighs less the deeper the product.
inline bool is_thin(int64_t M, int64_t steps) { return M <= 24 && steps >= std::max<int64_t>(64, 16 * M); }

// epilogue(A B); a is [M, K], b is [K, N].
template <class T, class Epilogue>
void gemm(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  const bool depth_is_dense = b.row_stride == 1;
  if (!depth_is_dense && b.col_stride == 1 && a.rows <= kThinRows) return gemm_thin_rows(a, b, epilogue);
#if defined(BIGKERN_BFLOAT16_DOT)
  if constexpr (std::is_same_v<T, bfloat16>)
    if (has_bfloat16_dot()) {
      if (depth_is_dense && is_thin(a.rows, a.cols / 2)) return gemm_thin<ThinKernel<T, bfloat16>>(a, b, epilogue);
      return gemm_packed<PairReader>(a, b, epilogue);
    }
#endif
  if (depth_is_dense && is_thin(a.rows, a.cols)) return gemm_thin<ThinKernel<T, acc_t<T>>>(a, b, epilogue);
  gemm_packed<WidenReader<T>>(a, b, epilogue);
}

}  // namespace bigkern
