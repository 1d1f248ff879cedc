#include "embedding_rows.h"
#include "kernels.h"
#include "norm.h"

namespace bigkern {
namespace embedding {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth waking a thread for
constexpr int64_t kAhead = 4;      // rows

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    default: return 2;
  }
}

// The occurrences of each row of a table, in the order of the input: a counting sort.
class Occurrences {
 public:
  Occurrences(const Indices& input, int64_t rows)
      : lease_(static_cast<size_t>(rows + 2 + input.count) * sizeof(int64_t)),
        first_(lease_.as<int64_t>()),
        order_(first_ + rows + 2) {
    // Counted two places further on, summed up, and moved one place back by the filling.
    std::fill(first_, first_ + rows + 2, int64_t{0});
    for (int64_t i = 0; i < input.count; ++i) ++first_[input[i] + 2];
    for (int64_t row = 2; row < rows + 2; ++row) {
      most_ = std::max(most_, first_[row]);
      first_[row] += first_[row - 1];
    }
    for (int64_t i = 0; i < input.count; ++i) order_[first_[input[i] + 1]++] = i;
  }
  int64_t first(int64_t row) const { return first_[row]; }
  int64_t operator[](int64_t k) const { return order_[k]; }
  int64_t most() const { return most_; }

  // The first row of part `part` of `parts` with about as much to read and write as the others.
  int64_t first_row(int64_t part, int64_t parts, int64_t rows) const {
    int64_t wanted = (first_[rows] + rows) * part / parts, low = 0, high = rows;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      first_[middle] + middle < wanted ? low = middle + 1 : high = middle;
    }
    return low;
  }

 private:
  struct Tag {};
  Lease<Tag> lease_;
  int64_t* first_;
  int64_t* order_;
  int64_t most_ = 0;
};

template <class T>
class RowSum {
  using A = acc_t<T>;
  static constexpr int kVectors = 4;
  static constexpr int64_t kColumns = kVectors * lanes<A>;
  // Occurrences that are added up before their sum joins the total: a float that has grown large drops what is small.
  static constexpr int64_t kTogether = 64;

 public:
  RowSum(const TableGradient& gradient, const Occurrences& occurrences, T* grad_weight)
      : gradient_(gradient), occurrences_(occurrences), grads_(gradient.grad_output), grad_weight_(grad_weight) {}

  void write(int64_t row, int64_t begin, int64_t end) const {
    int64_t first = occurrences_.first(row), last = occurrences_.first(row + 1);
    if (row == gradient_.padding_idx) first = last;
    A scale = gradient_.divide_by_count && first < last ? A(1) / static_cast<A>(last - first) : A(1);
    if (last < gradient_.input.count && grads_.column_stride == 1)
      prefetch_row(grads_.data + source(occurrences_[last]) * grads_.row_stride, grads_.columns * sizeof(T));
    for (int64_t column = begin; column < end; column += kColumns) {
      int64_t count = std::min(kColumns, end - column);
      vec<A> total[kVectors] = {};
      for (int64_t k = first; k < last; k += kTogether) {
        vec<A> part[kVectors] = {};
        add(row, k, std::min(last, k + kTogether), column, count, part);
        for (int v = 0; v < kVectors; ++v) total[v] += part[v];
      }
      T* target = grad_weight_ + row * grads_.columns + column;
      for (int v = 0; v < kVectors; ++v) {
        int64_t n = std::min<int64_t>(lanes<A>, count - v * lanes<A>);
        if (n > 0) norm::store_lanes(target + v * lanes<A>, vec<A>(total[v] * scale), n);
      }
    }
  }

 private:
  int64_t source(int64_t occurrence) const { return gradient_.source ? gradient_.source[occurrence] : occurrence; }

  void add(int64_t row, int64_t k, int64_t last, int64_t column, int64_t count, vec<A> (&part)[kVectors]) const {
    T scratch[kColumns];
    for (; k < last; ++k) {
      int64_t from = source(occurrences_[k]);
      const T* grad = grads_.piece(from, column, count, scratch);
      if (gradient_.winners) {
        if (k > occurrences_.first(row) && source(occurrences_[k - 1]) == from) continue;  // twice in one bag
        grad = won(row, from, column, count, grad, scratch);
      }
      A factor = gradient_.factor ? static_cast<A>(gradient_.factor[occurrences_[k]]) : A(1);
      if (count == kColumns) {
        for (int v = 0; v < kVectors; ++v) part[v] += load(grad + v * lanes<A>) * factor;
      } else {
        for (int v = 0; v < kVectors; ++v) {
          int64_t n = std::min<int64_t>(lanes<A>, count - v * lanes<A>);
          if (n > 0) part[v] += norm::load_lanes(grad + v * lanes<A>, n) * factor;
        }
      }
    }
  }

  const T* won(int64_t row, int64_t from, int64_t column, int64_t count, const T* grad, T* scratch) const {
    const int64_t* winners = gradient_.winners + from * grads_.columns + column;
    for (int64_t i = 0; i < count; ++i) scratch[i] = winners[i] == row ? grad[i] : T{};
    return scratch;
  }

  const TableGradient& gradient_;
  const Occurrences& occurrences_;
  norm::Rows<T> grads_;
  T* grad_weight_;
};

}  // namespace

void add_up(const TableGradient& gradient, const Tensor& grad_weight) {
  int64_t rows = grad_weight.sizes[0], columns = grad_weight.sizes[1];
  gradient.input.check(gradient.op, rows);
  if (columns == 0) return;
  Occurrences occurrences(gradient.input, rows);
  int64_t work = gradient.input.count + rows, threads = available_threads();
  if (work * columns < 2 * kGrain) threads = 1;
  // A row that is most of the work (padding, a token type) is shared out by columns.
  bool uneven = threads > 1 && occurrences.most() * 2 * threads > work;
  int64_t column_parts = uneven ? std::min(threads, (columns + 63) / 64) : 1;
  int64_t width = (columns / column_parts + 63) / 64 * 64, row_parts = threads > 1 ? 4 * threads : 1;
  if (column_parts == 1) width = columns;
  column_parts = (columns + width - 1) / width;
  dispatch_floating(grad_weight.dtype, gradient.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    RowSum<T> sum(gradient, occurrences, grad_weight.as<T>());
    auto body = [&](int64_t part) {
      int64_t begin = part % column_parts * width, end = std::min(columns, begin + width);
      int64_t row_part = part / column_parts, last = occurrences.first_row(row_part + 1, row_parts, rows);
      for (int64_t row = occurrences.first_row(row_part, row_parts, rows); row < last; ++row)
        sum.write(row, begin, end);
    };
    if (threads == 1)
      body(0);
    else
      parallel_for_dynamic(row_parts * column_parts, body);
  });
}

}  // namespace embedding

void embedding_forward(const Tensor& input, const Tensor& weight, int64_t /*padding_idx*/, bool /*scale_grad_by_freq*/,
                       const Tensor& output) {
  using namespace embedding;
  Indices indices(input);
  indices.check("embedding", weight.sizes[0]);
  int64_t item = size_of(weight.dtype), columns = weight.sizes[1], bytes = columns * item;
  int64_t row_bytes = weight.strides[0] * item, column_bytes = weight.strides[1] * item;
  const char* table = weight.as<const char>();
  char* target = output.as<char>();
  parallel_for(indices.count, kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* row = table + indices[i] * row_bytes;
      if (column_bytes == item) {
        if (i + kAhead < end) prefetch_row(table + indices[i + kAhead] * row_bytes, bytes);
        std::memcpy(target + i * bytes, row, static_cast<size_t>(bytes));
      } else {
        for (int64_t c = 0; c < columns; ++c)
          std::memcpy(target + i * bytes + c * item, row + c * column_bytes, static_cast<size_t>(item));
      }
    }
  });
}

void embedding_backward(const Tensor& grad_output, const Tensor& input, int64_t /*num_embeddings*/, int64_t padding_idx,
                        bool scale_grad_by_freq, const Tensor& grad_weight) {
  embedding::TableGradient gradient{"embedding", grad_output, embedding::Indices(input), padding_idx};
  gradient.divide_by_count = scale_grad_by_freq;
  embedding::add_up(gradient, grad_weight);
}

}  // namespace bigkern
