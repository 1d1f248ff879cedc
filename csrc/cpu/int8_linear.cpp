// int8_linear: rows of the input are quantized, multiplied with int8 weights exactly, and scaled back.
#include <algorithm>
#include <vector>

#include "activation.h"
#include "dtype.h"
#include "int8_gemm.h"
#include "kernels.h"
#include "parallel.h"
#include "quantize.h"
#include "workspace.h"

namespace bigkern {
namespace {

using int8_gemm::kColumns;
using int8_gemm::kRows;
using int8_gemm::Signed;
using int8_gemm::Unsigned;

constexpr int64_t kFewRows = 8;                      // up to here, reading each weight once is what counts
constexpr int64_t kChunkBytes = 512 * 1024;          // activations that stay in a core's L2 cache
constexpr int64_t kSlabBytes = 16 * kChunkBytes;     // activations that are kept quantized at a time
constexpr int64_t kQuantizeGrain = 16384;            // values that are worth waking a thread for
constexpr int64_t kMultiplyGrain = 4 * 1024 * 1024;  // products that are

// Workspaces (see workspace.h).
struct Activations;
struct QuantizedRow;
struct CopiedWeights;
struct WidenedWeights;

// ---- epilogue -------------------------------------------------------------------------------------------------------

// Turns a block of integer products [rows, kColumns] into outputs.
template <class T>
class Epilogue {
  using A = acc_t<T>;

 public:
  Epilogue(const Tensor& weight_scale, const Tensor& bias, Activation activation, const Tensor& output,
           const Tensor& pre_activation)
      : weight_scale_(weight_scale), bias_(bias), activation_(activation), output_(output), pre_(pre_activation) {}

  void write(const int32_t* products, const A* row_scales, int64_t first_row, int64_t rows, int64_t first_column) {
    int64_t N = output_.sizes[1], columns = std::min<int64_t>(kColumns, N - first_column);
    A column_scales[kColumns] = {}, column_biases[kColumns] = {}, values[kMaxRows * kColumns];
    for (int64_t column = 0; column < columns; ++column) {
      int64_t n = first_column + column;
      column_scales[column] = weight_scale_.as<A>()[n * weight_scale_.strides[0]];
      if (bias_.defined()) column_biases[column] = to_acc(bias_.as<T>()[n * bias_.strides[0]]);
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int column = 0; column < kColumns; ++column) {
        int64_t i = row * kColumns + column;
        // The weight's scale first: a row of huge values has a scale that would overflow with the bare product.
        values[i] = A(products[i]) * column_scales[column] * row_scales[row] + column_biases[column];
      }
    if (pre_.numel()) store_rows(values, pre_.as<T>(), first_row, rows, first_column, columns);
    activate_values(activation_, values, rows * kColumns);
    store_rows(values, output_.as<T>(), first_row, rows, first_column, columns);
  }

  static constexpr int64_t kMaxRows = 2 * kRows;

 private:
  void store_rows(const A* values, T* matrix, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns) {
    int64_t N = output_.sizes[1];
    for (int64_t row = 0; row < rows; ++row) {
      T* target = matrix + (first_row + row) * N + first_column;
      const A* source = values + row * kColumns;
      if (columns == kColumns)
        for (int column = 0; column < kColumns; column += lanes<A>) store(target + column, load(source + column));
      else
        for (int64_t column = 0; column < columns; ++column) target[column] = from_acc<T>(source[column]);
    }
  }

  const Tensor &weight_scale_, &bias_;
  Activation activation_;
  const Tensor &output_, &pre_;
};

// ---- weights --------------------------------------------------------------------------------------------------------

// Rows first .. first + kColumns of qweight with unit stride; the last row stands in for those past the end.
class WeightRows {
 public:
  explicit WeightRows(const Tensor& qweight)
      : qweight_(qweight), copies_(qweight.strides[1] == 1 ? 0 : kColumns * qweight.sizes[1]) {}

  const int8_t* const* at(int64_t first) {
    int64_t N = qweight_.sizes[0], K = qweight_.sizes[1];
    for (int column = 0; column < kColumns; ++column) {
      const int8_t* row = qweight_.as<int8_t>() + std::min(first + column, N - 1) * qweight_.strides[0];
      rows_[column] = row;
      if (qweight_.strides[1] != 1) {
        int8_t* copy = copies_.as<int8_t>() + column * K;
        for (int64_t k = 0; k < K; ++k) copy[k] = row[k * qweight_.strides[1]];
        rows_[column] = copy;
      }
    }
    return rows_;
  }

 private:
  const Tensor& qweight_;
  Lease<CopiedWeights> copies_;
  const int8_t* rows_[kColumns];
};

// ---- the two ways ---------------------------------------------------------------------------------------------------

// Quantizes one row of `input` into qvalues [padded depth], zeros at the end; returns its scale.
template <class T>
acc_t<T> quantize_row(const Tensor& input, int64_t row, int64_t padded, int8_t* qvalues) {
  int64_t K = input.sizes[1], stride = input.strides[1];
  const T* values = input.as<T>() + row * input.strides[0];
  auto params = symmetric_params(range_of(values, K, stride));
  quantize_run(values, K, stride, params, qvalues);
  std::fill(qvalues + K, qvalues + padded, int8_t(0));
  return params.scale;
}

template <class T>
void few_rows(const Tensor& input, const Tensor& qweight, Epilogue<T>& epilogue) {
  int64_t M = input.sizes[0], K = input.sizes[1], N = qweight.sizes[0], padded = int8_gemm::padded_depth(K);
  Lease<Activations> workspace(M * padded * sizeof(Signed));
  Signed* activations = workspace.as<Signed>();
  acc_t<T> scales[kFewRows];
  int32_t sums[kFewRows];
  parallel_for(M, kQuantizeGrain / (K + 1) + 1, [&](int64_t begin, int64_t end) {
    Lease<QuantizedRow> row_workspace(padded);
    int8_t* qvalues = row_workspace.as<int8_t>();
    for (int64_t row = begin; row < end; ++row) {
      scales[row] = quantize_row<T>(input, row, padded, qvalues);
      int32_t sum = 0;
      for (int64_t k = 0; k < padded; ++k) sum += qvalues[k];
      sums[row] = sum;
      std::copy(qvalues, qvalues + padded, activations + row * padded);
    }
  });
  parallel_for((N + kColumns - 1) / kColumns, kMultiplyGrain / (M * K * kColumns + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 WeightRows weights(qweight);
                 alignas(64) int32_t products[int8_gemm::kRowsInRegisters * kColumns];
                 for (int64_t block = begin; block < end; ++block) {
                   const int8_t* const* rows = weights.at(block * kColumns);
                   for (int64_t row = 0; row < M;) {
                     const Signed* first = activations + row * padded;
                     int64_t count = int8_gemm::dot_rows(first, sums + row, M - row, rows, K, products);
                     epilogue.write(products, scales + row, row, count, block * kColumns);
                     row += count;
                   }
                 }
               });
}

template <class T>
void many_rows(const Tensor& input, const Tensor& qweight, Epilogue<T>& epilogue) {
  int64_t M = input.sizes[0], K = input.sizes[1], N = qweight.sizes[0], padded = int8_gemm::padded_depth(K);
  int64_t tile_size = padded * kRows, tile_bytes = tile_size * static_cast<int64_t>(sizeof(Unsigned));
  int64_t tiles_per_chunk = std::max<int64_t>(2, kChunkBytes / tile_bytes / 2 * 2);
  int64_t tiles_per_slab = std::max<int64_t>(tiles_per_chunk, kSlabBytes / tile_bytes / 2 * 2);
  int64_t all_tiles = (M + kRows - 1) / kRows;
  Lease<Activations> workspace(std::min(tiles_per_slab, all_tiles) * tile_bytes);
  Unsigned* activations = workspace.as<Unsigned>();
  std::vector<acc_t<T>> scales(M);

  for (int64_t slab = 0; slab < all_tiles; slab += tiles_per_slab) {
    int64_t tiles = std::min(tiles_per_slab, all_tiles - slab);
    parallel_for(tiles, kQuantizeGrain / (K * kRows + 1) + 1, [&](int64_t begin, int64_t end) {
      Lease<QuantizedRow> row_workspace(padded);
      int8_t* qvalues = row_workspace.as<int8_t>();
      for (int64_t tile = begin; tile < end; ++tile)
        for (int row = 0; row < kRows; ++row) {
          int64_t m = (slab + tile) * kRows + row;
          if (m < M)
            scales[m] = quantize_row<T>(input, m, padded, qvalues);
          else
            std::fill_n(qvalues, padded, int8_t(0));
          int8_gemm::interleave_row(qvalues, padded, row, activations + tile * tile_size);
        }
    });
    int64_t chunks = (tiles + tiles_per_chunk - 1) / tiles_per_chunk, blocks = (N + kColumns - 1) / kColumns;
    parallel_for(chunks * blocks, kMultiplyGrain / (tiles_per_chunk * kRows * K * kColumns + 1) + 1,
                 [&](int64_t begin, int64_t end) {
                   WeightRows weights(qweight);
                   Lease<WidenedWeights> widened(kColumns * padded * sizeof(Signed));
                   alignas(64) int32_t products[2 * kRows * kColumns];
                   for (int64_t item = begin; item < end; ++item) {
                     int64_t first_column = item % blocks * kColumns, first_tile = item / blocks * tiles_per_chunk;
                     int64_t last_tile = std::min(first_tile + tiles_per_chunk, tiles);
                     auto block = int8_gemm::weight_block(weights.at(first_column), K, widened.as<Signed>());
                     for (int64_t tile = first_tile; tile < last_tile; tile += 2) {
                       const Unsigned* source = activations + tile * tile_size;
                       if (last_tile - tile > 1)
                         int8_gemm::multiply_tiles<2>(source, block, K, products);
                       else
                         int8_gemm::multiply_tiles<1>(source, block, K, products);
                       int64_t row = (slab + tile) * kRows, rows = std::min((slab + last_tile) * kRows, M) - row;
                       epilogue.write(products, scales.data() + row, row, std::min<int64_t>(2 * kRows, rows),
                                      first_column);
                     }
                   }
                 });
  }
}

}  // namespace

void int8_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale, const Tensor& bias,
                         const std::string& activation, bool /*save_pre_activation*/, const Tensor& output,
                         const Tensor& pre_activation) {
  if (output.numel() == 0) return;
  dispatch_floating(input.dtype, "int8_linear_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Epilogue<T> epilogue(weight_scale, bias, activation_from_name(activation), output, pre_activation);
    if (input.sizes[0] <= kFewRows)
      few_rows<T>(input, qweight, epilogue);
    else
      many_rows<T>(input, qweight, epilogue);
  });
}

}  // namespace bigkern
