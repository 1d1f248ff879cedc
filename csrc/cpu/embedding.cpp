#include <algorithm>
#include <vector>

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

// The occurrences in the order of their rows of the table, and in the order of the input where they share one.
class Occurrences {
 public:
  Occurrences(const Indices& input, int64_t rows) : order_(static_cast<size_t>(input.count)) {
    const int64_t count = input.count;
    if (rows > 8 * count) {  // too few to look at every row
      for (int64_t i = 0; i < count; ++i) order_[i] = {input[i], i};
      std::sort(order_.begin(), order_.end(),
                [](const Pair& a, const Pair& b) { return a.row < b.row || (a.row == b.row && a.place < b.place); });
    } else {
      std::vector<int64_t> next(static_cast<size_t>(rows + 1), 0);
      for (int64_t i = 0; i < count; ++i) ++next[input[i] + 1];
      for (int64_t row = 0; row < rows; ++row) next[row + 1] += next[row];
      for (int64_t i = 0; i < count; ++i) order_[next[input[i]]++] = {input[i], i};
    }
    for (int64_t k = 0, first = 0; k < count; ++k) {
      if (order_[k].row != order_[first].row) first = k;
      most_ = std::max(most_, k + 1 - first);
    }
  }
  int64_t count() const { return static_cast<int64_t>(order_.size()); }
  int64_t row(int64_t k) const { return order_[k].row; }
  int64_t place(int64_t k) const { return order_[k].place; }
  int64_t most() const { return most_; }

  // The first occurrence of `row`, or of what follows it.
  int64_t first(int64_t row) const {
    return std::partition_point(order_.begin(), order_.end(), [=](const Pair& pair) { return pair.row < row; }) -
           order_.begin();
  }
  // The first row of part `part` of `parts` with about as much to read and write as the others.
  int64_t first_row(int64_t part, int64_t parts, int64_t rows) const {
    int64_t wanted = (count() + rows) * part / parts, low = 0, high = rows;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      first(middle) + middle < wanted ? low = middle + 1 : high = middle;
    }
    return low;
  }

 private:
  struct Pair {
    int64_t row, place;
  };
  std::vector<Pair> order_;
  int64_t most_ = 0;
};

// Writes rows of the table's gradient.
template <class T>
class RowSum {
  using A = acc_t<T>;
  static constexpr int64_t kColumns = 512;
  static constexpr int kTogether = 8;  // occurrences read side by side, whose sum then joins the total

 public:
  RowSum(const TableGradient& gradient, const Occurrences& occurrences, T* grad_weight)
      : gradient_(gradient), occurrences_(occurrences), grads_(gradient.grad_output), grad_weight_(grad_weight) {}

  void write(int64_t first_row, int64_t last_row, int64_t begin, int64_t end) const {
    int64_t k = occurrences_.first(first_row), count = occurrences_.count();
    for (int64_t row = first_row; row < last_row;) {
      int64_t next = k < count ? std::min(last_row, occurrences_.row(k)) : last_row;
      clear(row, next, begin, end);
      if (next == last_row) return;
      row = next;
      int64_t last = k + 1;
      while (last < count && occurrences_.row(last) == row) ++last;
      if (last < count && grads_.column_stride == 1)
        prefetch_row(grads_.data + source(last) * grads_.row_stride + begin, (end - begin) * sizeof(T));
      if (row == gradient_.padding_idx)
        clear(row, row + 1, begin, end);
      else
        for (int64_t column = begin; column < end; column += kColumns)
          add(row, k, last, column, std::min(kColumns, end - column));
      k = last;
      ++row;
    }
  }

 private:
  int64_t source(int64_t k) const {
    return gradient_.source ? gradient_.source[occurrences_.place(k)] : occurrences_.place(k);
  }

  void clear(int64_t row, int64_t last, int64_t begin, int64_t end) const {
    if (end - begin == grads_.columns) {  // one stretch of memory
      std::memset(grad_weight_ + row * end, 0, static_cast<size_t>((last - row) * end) * sizeof(T));
    } else {
      for (; row < last; ++row)
        std::memset(grad_weight_ + row * grads_.columns + begin, 0, static_cast<size_t>(end - begin) * sizeof(T));
    }
  }

  void add(int64_t row, int64_t first, int64_t last, int64_t column, int64_t count) const {
    A total[kColumns];
    T* target = grad_weight_ + row * grads_.columns + column;
    for (int64_t k = first; k < last; k += kTogether) {
      int together = static_cast<int>(std::min<int64_t>(kTogether, last - k));
      const T* grads[kTogether];
      A factors[kTogether];
      T scratch[kTogether][kColumns];
      for (int r = 0; r < together; ++r) {
        grads[r] = grads_.piece(source(k + r), column, count, scratch[r]);
        factors[r] = gradient_.factor ? static_cast<A>(gradient_.factor[occurrences_.place(k + r)]) : A(1);
        if (gradient_.winners) grads[r] = won(row, k + r, first, column, count, grads[r], scratch[r]);
      }
      norm::over_vectors<A>(count, [&](int64_t i, int64_t n) {
        vec<A> sum = norm::load_lanes(grads[0] + i, n) * factors[0];
        for (int r = 1; r < together; ++r) sum += norm::load_lanes(grads[r] + i, n) * factors[r];
        if (k > first) sum += norm::load_lanes(total + i, n);
        if (k + kTogether < last)
          norm::store_lanes(total + i, sum, n);
        else
          norm::store_lanes(target + i, sum, n);
      });
    }
  }

  const T* won(int64_t row, int64_t k, int64_t first, int64_t column, int64_t count, const T* grad, T* scratch) const {
    const int64_t from = source(k), *winners = gradient_.winners + from * grads_.columns + column;
    bool again = k > first && source(k - 1) == from;  // a row that stands in a bag twice has won once
    for (int64_t i = 0; i < count; ++i) scratch[i] = !again && winners[i] == row ? grad[i] : T{};
    return scratch;
  }

  const TableGradient& gradient_;
  const Occurrences& occurrences_;
  norm::Rows<T> grads_;
  T* grad_weight_;
};

}  // namespace

std::vector<double> inverse_frequencies(const Indices& input, int64_t rows) {
  input.check("embedding", rows);
  std::vector<double> found(static_cast<size_t>(input.count)), frequencies(static_cast<size_t>(rows), 0.0);
  for (int64_t i = 0; i < input.count; ++i) ++frequencies[input[i]];
  for (int64_t i = 0; i < input.count; ++i) found[i] = 1 / frequencies[input[i]];
  return found;
}

void add_up(const TableGradient& gradient, const Tensor& grad_weight) {
  int64_t rows = grad_weight.sizes[0], columns = grad_weight.sizes[1];
  gradient.input.check(gradient.op, rows);
  if (columns == 0) return;
  Occurrences occurrences(gradient.input, rows);
  int64_t work = gradient.input.count + rows, threads = available_threads();
  if (work * columns < 16 * kGrain) threads = 1;
  // A row that is most of the work (padding, a token type) is shared out by columns.
  bool uneven = threads > 1 && occurrences.most() * 2 * threads > work;
  int64_t width = uneven ? std::max<int64_t>((columns / threads + 63) / 64 * 64, 64) : columns;
  int64_t column_parts = (columns + width - 1) / width, row_parts = threads > 1 ? 4 * threads : 1;
  dispatch_floating(grad_weight.dtype, gradient.op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    RowSum<T> sum(gradient, occurrences, grad_weight.as<T>());
    auto body = [&](int64_t part) {
      int64_t begin = part % column_parts * width, row_part = part / column_parts;
      sum.write(occurrences.first_row(row_part, row_parts, rows), occurrences.first_row(row_part + 1, row_parts, rows),
                begin, std::min(columns, begin + width));
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
  if (output.numel() == 0) return;
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
  std::vector<double> factors;
  if (scale_grad_by_freq) {
    factors = embedding::inverse_frequencies(gradient.input, grad_weight.sizes[0]);
    gradient.factor = factors.data();
  }
  embedding::add_up(gradient, grad_weight);
}

}  // namespace bigkern
