#include <algorithm>
#include <vector>

#include "embedding_rows.h"
#include "kernels.h"
#include "norm.h"

namespace bigkern {
namespace {

using embedding::Indices;

constexpr int64_t kGrain = 16384;  // elements that are worth waking a thread for
constexpr int64_t kAhead = 6;      // rows

// Where the bags begin and end.
struct Bags {
  Indices offsets;
  int64_t count, last_end;

  Bags(const Tensor& tensor, bool include_last_offset, int64_t length)
      : offsets(tensor), count(offsets.count - include_last_offset), last_end(length) {
    if (include_last_offset) last_end = offsets[count];
    if (count > 0 && offsets[0] != 0)
      throw std::invalid_argument("embedding_bag: offsets[0] has to be 0, got " + std::to_string(offsets[0]));
    for (int64_t bag = 0; bag < count; ++bag)
      if (end(bag) < begin(bag) || end(bag) > length)
        throw std::invalid_argument("embedding_bag: offsets must ascend to at most " + std::to_string(length) +
                                    ", the length of input; bag " + std::to_string(bag) + " is from " +
                                    std::to_string(begin(bag)) + " to " + std::to_string(end(bag)));
    if (count == 0) last_end = 0;
  }
  int64_t begin(int64_t bag) const { return offsets[bag]; }
  int64_t end(int64_t bag) const { return bag + 1 < count ? offsets[bag + 1] : last_end; }
};

// Bags that are worth waking a thread for.
int64_t grain_of(const Bags& bags, int64_t columns) {
  int64_t each = columns * (bags.last_end / std::max<int64_t>(bags.count, 1) + 1);
  return kGrain / std::max<int64_t>(each, 1) + 1;
}

template <class T>
struct Samples {
  const T* values = nullptr;
  int64_t stride = 0;

  explicit Samples(const Tensor& tensor) {
    if (!tensor.defined()) return;
    values = tensor.as<const T>();
    stride = tensor.strides[0];
  }
  acc_t<T> operator[](int64_t i) const { return values ? to_acc(values[i * stride]) : acc_t<T>(1); }
};

template <class T>
class BagSum {
  using A = acc_t<T>;
  static constexpr int kVectors = 4;
  static constexpr int64_t kColumns = kVectors * lanes<A>;

 public:
  BagSum(const Tensor& weight, const Indices& input, const Samples<T>& samples, int64_t padding_idx)
      : table_(weight), input_(input), samples_(samples), padding_idx_(padding_idx) {}

  int64_t size(int64_t begin, int64_t end) const {
    int64_t size = end - begin;
    for (int64_t p = begin; p < end; ++p) size -= input_[p] == padding_idx_;
    return size;
  }

  void sum(int64_t begin, int64_t end, A divisor, T* output) const {
    for (int64_t column = 0; column < table_.columns; column += kColumns) {
      int64_t count = std::min(kColumns, table_.columns - column);
      vec<A> total[kVectors] = {};
      for (int64_t p = begin; p < end; ++p) {
        if (column == 0 && p + kAhead < end) prefetch(p + kAhead);
        if (input_[p] == padding_idx_) continue;
        T scratch[kColumns];
        const T* row = table_.piece(input_[p], column, count, scratch);
        A sample = samples_[p];
        for (int v = 0; v < kVectors; ++v) {
          int64_t n = std::min<int64_t>(lanes<A>, count - v * lanes<A>);
          if (n > 0) total[v] += norm::load_lanes(row + v * lanes<A>, n) * sample;
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        int64_t n = std::min<int64_t>(lanes<A>, count - v * lanes<A>);
        if (n > 0) norm::store_lanes(output + column + v * lanes<A>, vec<A>(total[v] / divisor), n);
      }
    }
  }

  // As PyTorch's: the first of equal values wins, and NaN wins only where it comes first.
  void largest(int64_t begin, int64_t end, T* output, int64_t* winners) const {
    std::fill(output, output + table_.columns, T{});
    std::fill(winners, winners + table_.columns, int64_t{-1});
    for (int64_t p = begin; p < end; ++p) {
      int64_t row = input_[p];
      if (row == padding_idx_) continue;
      const T* values = table_.data + row * table_.row_stride;
      for (int64_t column = 0; column < table_.columns; ++column) {
        T value = values[column * table_.column_stride];
        if (winners[column] >= 0 && !(to_acc(value) > to_acc(output[column]))) continue;
        output[column] = value;
        winners[column] = row;
      }
    }
  }

  // The dot products of one row of grad_output with the rows of its bag.
  void sample_gradients(int64_t begin, int64_t end, const norm::Rows<T>& grads, int64_t bag, T* grad_samples) const {
    constexpr int64_t kPiece = 512;
    T scratch[kPiece], grad_scratch[kPiece];
    for (int64_t p = begin; p < end; ++p) {
      double total = 0;
      for (int64_t column = 0; column < table_.columns && input_[p] != padding_idx_; column += kPiece) {
        int64_t count = std::min(kPiece, table_.columns - column);
        const T* row = table_.piece(input_[p], column, count, scratch);
        const T* grad = grads.piece(bag, column, count, grad_scratch);
        vec<A> sum{};
        norm::over_vectors<A>(
            count, [&](int64_t i, int64_t n) { sum += norm::load_lanes(row + i, n) * norm::load_lanes(grad + i, n); });
        total += norm::sum_lanes<kVectorBytes>(sum);
      }
      grad_samples[p] = from_acc<T>(static_cast<A>(total));
    }
  }

 private:
  void prefetch(int64_t p) const {
    embedding::prefetch_row(table_.data + input_[p] * table_.row_stride, table_.columns * sizeof(T));
  }
  norm::Rows<T> table_;
  const Indices& input_;
  Samples<T> samples_;
  int64_t padding_idx_;
};

}  // namespace

void embedding_bag_forward(const Tensor& input, const Tensor& weight, const Tensor& offsets,
                           const Tensor& per_sample_weights, const std::string& mode, int64_t padding_idx,
                           bool /*scale_grad_by_freq*/, bool include_last_offset, const Tensor& output,
                           const Tensor& bag_size, const Tensor& max_indices) {
  Indices indices(input);
  indices.check("embedding_bag", weight.sizes[0]);
  Bags bags(offsets, include_last_offset, indices.count);
  int64_t columns = weight.sizes[1];
  dispatch_floating(weight.dtype, "embedding_bag_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    BagSum<T> sum(weight, indices, Samples<T>(per_sample_weights), padding_idx);
    parallel_for(bags.count, grain_of(bags, columns), [&](int64_t first, int64_t last) {
      for (int64_t bag = first; bag < last; ++bag) {
        int64_t begin = bags.begin(bag), end = bags.end(bag), size = sum.size(begin, end);
        bag_size.as<int64_t>()[bag] = size;
        T* target = output.as<T>() + bag * columns;
        if (mode == "max")
          sum.largest(begin, end, target, max_indices.as<int64_t>() + bag * columns);
        else
          sum.sum(begin, end, static_cast<acc_t<T>>(mode == "mean" && size > 0 ? size : 1), target);
      }
    });
  });
}

void embedding_bag_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& offsets,
                            const Tensor& per_sample_weights, const Tensor& bag_size, const Tensor& max_indices,
                            const std::string& mode, int64_t padding_idx, bool scale_grad_by_freq,
                            bool include_last_offset, bool needs_weight_grad, bool needs_per_sample_weights_grad,
                            const Tensor& grad_weight, const Tensor& grad_per_sample_weights) {
  Indices indices(input);
  indices.check("embedding_bag", weight.sizes[0]);
  Bags bags(offsets, include_last_offset, indices.count);
  std::vector<int64_t> bag_of(needs_weight_grad ? static_cast<size_t>(bags.last_end) : 0);
  std::vector<double> factors;
  if (scale_grad_by_freq)
    factors = embedding::inverse_frequencies(indices, weight.sizes[0]);
  else if (mode == "mean" || per_sample_weights.defined())
    factors.resize(bag_of.size(), 1.0);
  dispatch_floating(weight.dtype, "embedding_bag_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Samples<T> samples(per_sample_weights);
    BagSum<T> sum(weight, indices, samples, padding_idx);
    norm::Rows<T> grads(grad_output);
    if (needs_per_sample_weights_grad)
      std::fill(grad_per_sample_weights.as<T>() + bags.last_end, grad_per_sample_weights.as<T>() + indices.count, T{});
    parallel_for(bags.count, grain_of(bags, grads.columns), [&](int64_t first, int64_t last) {
      for (int64_t bag = first; bag < last; ++bag) {
        int64_t begin = bags.begin(bag), end = bags.end(bag);
        if (needs_per_sample_weights_grad)
          sum.sample_gradients(begin, end, grads, bag, grad_per_sample_weights.as<T>());
        double share = mode == "mean" ? 1.0 / static_cast<double>(bag_size.as<int64_t>()[bag]) : 1;
        for (int64_t p = begin; needs_weight_grad && p < end; ++p) {
          bag_of[p] = bag;
          if (!factors.empty()) factors[p] *= share * static_cast<double>(samples[p]);
        }
      }
    });
  });
  if (!needs_weight_grad) return;
  embedding::TableGradient gradient{"embedding_bag", grad_output, Indices(input, bags.last_end), padding_idx};
  gradient.source = bag_of.data();
  gradient.factor = factors.empty() ? nullptr : factors.data();
  if (mode == "max") gradient.winners = max_indices.as<const int64_t>();
  embedding::add_up(gradient, grad_weight);
}

}  // namespace bigkern
