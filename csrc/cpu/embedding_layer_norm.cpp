// A block of rows goes through the sum, the normalization and the dropout while it is in the second-level cache: one
// pass over memory, with the compiled layer_norm in the middle of it.
#include <algorithm>
#include <memory>

#include "embedding_rows.h"
#include "kernels.h"
#include "norm.h"
#include "row_dropout.h"

namespace bigkern {
namespace {

using embedding::Indices;
using norm::Rows;

constexpr int64_t kBlock = 32768;  // elements that go through all steps together
constexpr int64_t kPiece = 512;    // columns
static_assert(kPiece % RowDropout::kColumns == 0);

// The sum of three rows, rounded to T.
template <class T>
struct ThreeTables {
  Rows<T> word, position, token_type;
  Indices word_ids, position_ids, token_type_ids;

  ThreeTables(const Tensor& input, const Tensor& word_weight, const Tensor& position_ids, const Tensor& position_weight,
              const Tensor& token_type_ids, const Tensor& token_type_weight)
      : word(word_weight),
        position(position_weight),
        token_type(token_type_weight),
        word_ids(input),
        position_ids(position_ids),
        token_type_ids(token_type_ids) {
    word_ids.check("embedding_layer_norm", word.rows);
    this->position_ids.check("embedding_layer_norm", position.rows);
    this->token_type_ids.check("embedding_layer_norm", token_type.rows);
  }

  void sum(int64_t row, T* target) const {
    T word_scratch[kPiece], position_scratch[kPiece], token_type_scratch[kPiece];
    if (row + 1 < word_ids.count)
      embedding::prefetch_row(word.data + word_ids[row + 1] * word.row_stride, word.columns * sizeof(T));
    for (int64_t begin = 0; begin < word.columns; begin += kPiece) {
      int64_t count = std::min(kPiece, word.columns - begin);
      const T* w = word.piece(word_ids[row], begin, count, word_scratch);
      const T* p = position.piece(position_ids[row], begin, count, position_scratch);
      const T* t = token_type.piece(token_type_ids[row], begin, count, token_type_scratch);
      norm::over_vectors<acc_t<T>>(count, [=](int64_t i, int64_t n) {
        norm::store_lanes(target + begin + i,
                          norm::load_lanes(w + i, n) + norm::load_lanes(p + i, n) + norm::load_lanes(t + i, n), n);
      });
    }
  }
};

template <class T>
void drop(const RowDropout& dropout, int64_t row, const Rows<T>& source, int64_t source_row, T* target) {
  T scratch[kPiece];
  acc_t<T> factors[kPiece];
  for (int64_t begin = 0; begin < source.columns; begin += kPiece) {
    int64_t count = std::min(kPiece, source.columns - begin);
    dropout.factors(row, begin, count, factors);
    const T* values = source.piece(source_row, begin, count, scratch);
    norm::over_vectors<acc_t<T>>(count, [&](int64_t i, int64_t n) {
      norm::store_lanes(target + begin + i,
                        vec<acc_t<T>>(norm::load_lanes(values + i, n) * norm::load_lanes(factors + i, n)), n);
    });
  }
}

// `rows` rows of a matrix, or elements of a vector, from `data` on.
Tensor part_of(const Tensor& whole, void* data, int64_t rows) {
  Tensor part = whole;
  part.data = data;
  part.sizes[0] = rows;
  return part;
}

}  // namespace

void embedding_layer_norm_forward(const Tensor& input, const Tensor& word_weight, const Tensor& position_ids,
                                  const Tensor& position_weight, const Tensor& token_type_ids,
                                  const Tensor& token_type_weight, const Tensor& weight, const Tensor& bias,
                                  const Tensor& rng_state, int64_t /*padding_idx*/, double eps, double dropout_p,
                                  const Tensor& output, const Tensor& mean, const Tensor& rstd) {
  dispatch_floating(word_weight.dtype, "embedding_layer_norm_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    ThreeTables<T> tables(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight);
    RowDropout dropout(rng_state, dropout_p);
    int64_t rows = output.sizes[0], columns = output.sizes[1];
    int64_t together = std::max<int64_t>(kBlock / std::max<int64_t>(columns, 1), 1);
    parallel_for(rows, norm::kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t first, int64_t last) {
      std::unique_ptr<T[]> sums(new T[static_cast<size_t>(together * columns)]);
      for (int64_t row = first; row < last; row += together) {
        int64_t count = std::min(together, last - row);
        for (int64_t r = 0; r < count; ++r) tables.sum(row + r, sums.get() + r * columns);
        T* target = output.as<T>() + row * columns;
        Tensor block = part_of(output, target, count);
        layer_norm_forward(part_of(output, sums.get(), count), weight, bias, eps, block,
                           part_of(mean, mean.as<A>() + row, count), part_of(rstd, rstd.as<A>() + row, count));
        for (int64_t r = 0; dropout.active && r < count; ++r)
          drop(dropout, row + r, Rows<T>(block), r, target + r * columns);
      }
    });
  });
}

void embedding_layer_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& word_weight,
                                   const Tensor& position_ids, const Tensor& position_weight,
                                   const Tensor& token_type_ids, const Tensor& token_type_weight, const Tensor& weight,
                                   const Tensor& bias, const Tensor& mean, const Tensor& rstd, const Tensor& rng_state,
                                   int64_t padding_idx, double dropout_p, bool needs_table_grads,
                                   bool needs_weight_grad, bool needs_bias_grad, const Tensor& grad_word_weight,
                                   const Tensor& grad_position_weight, const Tensor& grad_token_type_weight,
                                   const Tensor& grad_weight, const Tensor& grad_bias) {
  dispatch_floating(word_weight.dtype, "embedding_layer_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    ThreeTables<T> tables(input, word_weight, position_ids, position_weight, token_type_ids, token_type_weight);
    RowDropout dropout(rng_state, dropout_p);
    int64_t rows = grad_output.sizes[0], columns = grad_output.sizes[1];
    Tensor sum = grad_output;
    sum.strides[0] = columns;
    sum.strides[1] = 1;
    Tensor masked = dropout.active ? sum : grad_output;
    std::unique_ptr<T[]> sums(new T[static_cast<size_t>(rows * columns)]);
    std::unique_ptr<T[]> kept(new T[static_cast<size_t>(dropout.active ? rows * columns : 0)]);
    sum.data = sums.get();
    if (dropout.active) masked.data = kept.get();
    parallel_for(rows, norm::kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        tables.sum(row, sums.get() + row * columns);
        if (dropout.active) drop(dropout, row, Rows<T>(grad_output), row, kept.get() + row * columns);
      }
    });
    // The gradient of the sum takes the sum's place: each vector is read before it is written.
    layer_norm_backward(masked, sum, weight, bias, mean, rstd, needs_table_grads, needs_weight_grad, needs_bias_grad,
                        sum, grad_weight, grad_bias);
    if (!needs_table_grads) return;
    const char* op = "embedding_layer_norm";
    embedding::add_up({op, sum, tables.word_ids, padding_idx}, grad_word_weight);
    embedding::add_up({op, sum, tables.position_ids, -1}, grad_position_weight);
    embedding::add_up({op, sum, tables.token_type_ids, -1}, grad_token_type_weight);
  });
}

}  // namespace bigkern
