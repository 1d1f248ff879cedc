// Rows of a table, for embedding, embedding_bag and embedding_layer_norm: indices, and the gradient of the table.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../tensor.h"

namespace bigkern::embedding {

// A vector of indices, int32 or int64, with any stride.
struct Indices {
  const void* data;
  int64_t count, stride;
  bool wide;

  explicit Indices(const Tensor& tensor, int64_t count)
      : data(tensor.data), count(count), stride(1), wide(tensor.dtype == DType::int64) {
    if (tensor.ndim == 1) stride = tensor.strides[0];
  }
  explicit Indices(const Tensor& tensor) : Indices(tensor, tensor.numel()) {}

  int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }

  // Throws at the first index that is no row of the table.
  void check(const char* op, int64_t rows) const {
    for (int64_t i = 0; i < count; ++i)
      if (static_cast<uint64_t>((*this)[i]) >= static_cast<uint64_t>(rows))
        throw std::out_of_range(std::string(op) + ": index " + std::to_string((*this)[i]) +
                                " is out of range for a table of " + std::to_string(rows) + " rows");
  }
};

// The beginning of a row that will be wanted soon: random rows are what no hardware foresees.
inline void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < (bytes < 256 ? bytes : 256); i += 64) __builtin_prefetch(static_cast<const char*>(row) + i);
}

// Which rows of a gradient are added up in which row of a table. An occurrence is an index of `input`.
struct TableGradient {
  const char* op;
  const Tensor& grad_output;         // [rows, columns], any strides
  Indices input;                     // the row of the table of each occurrence
  int64_t padding_idx;               // a row that stays zero, or -1
  const int64_t* source = nullptr;   // the row of grad_output of each occurrence, ascending; null: the same index
  const double* factor = nullptr;    // what it is multiplied by; null: 1
  const int64_t* winners = nullptr;  // [rows, columns]: only where this names the row of the table is it added
};

// 1 / (how often the row of an occurrence occurs in `input`), for each occurrence; defined in embedding.cpp.
std::vector<double> inverse_frequencies(const Indices& input, int64_t rows);

// Fills grad_weight [num_embeddings, columns]; defined in embedding.cpp.
void add_up(const TableGradient& gradient, const Tensor& grad_weight);

}  // namespace bigkern::embedding
