// The backward of layer_norm, rms_norm and add_layer_norm: three sums over each row, then the gradient of the input and
// partial sums of the parameters' gradients.
#pragma once

#include <vector>

#include "norm.h"

namespace bigkern::norm {

// Rows whose parameter gradients are added up one after the other. A function of the shape alone: it fixes the order of
// all sums. Shorter blocks would spend their time on partial sums, more of them their memory.
inline int64_t rows_per_block(int64_t rows) { return std::max<int64_t>(16, (rows + 127) / 128); }

// Sums over a row of d = x - mean (for kCentered), g = grad_output * weight and g * d.
struct RowSums {
  double d = 0, g = 0, gd = 0;

  void include(const RowSums& other) {
    d += other.d;
    g += other.g;
    gd += other.gd;
  }
};

template <bool kCentered, class T, class A = acc_t<T>>
RowSums sums_of(const T* grad_output, const T* values, int64_t count, const A* weight, A mean) {
  RowSums sums;
  if constexpr (kCentered) {
    double total[3];
    sum_vectors<A>(count, total, [&](int64_t i, int64_t n, auto&& add) {
      vec<A> d = load_lanes(values + i, n) - mean;
      vec<A> g = load_lanes(grad_output + i, n) * load_lanes(weight + i, n);
      add(0, d);
      add(1, g);
      add(2, g * d);
    });
    sums = {total[0], total[1], total[2]};
  } else {
    double total[1];
    sum_vectors<A>(count, total, [&](int64_t i, int64_t n, auto&& add) {
      add(0, load_lanes(grad_output + i, n) * load_lanes(weight + i, n) * load_lanes(values + i, n));
    });
    sums.gd = total[0];
  }
  return sums;
}

// grad_input = rstd * g - offset - slope * n, with n = ((x - mean) - mean_rest) * rstd.
template <class A>
struct RowGradient {
  A mean, mean_rest, rstd, offset, slope;

  RowGradient() = default;
  RowGradient(const RowSums& sums, double inverse_count, A mean, A rstd) : mean(mean), rstd(rstd) {
    // The forward stored a rounded mean; the sum of what it left says by how much.
    double rest = sums.d * inverse_count;
    mean_rest = static_cast<A>(rest);
    offset = static_cast<A>(rstd * (sums.g * inverse_count));
    slope = static_cast<A>(static_cast<double>(rstd) * rstd * ((sums.gd - rest * sums.g) * inverse_count));
  }
};

// Partial sums of the gradients of weight and bias over a block of rows; null where they are not needed.
template <class A>
struct PartialGradients {
  A* weight = nullptr;
  A* bias = nullptr;
};

// Sink takes the gradient of a piece: sink.begin(row, begin, count), then sink.store(i, vector, n) for its vectors.
template <bool kCentered, class T, class Sink, class A = acc_t<T>>
void gradient_of_piece(const T* grad_output, const T* values, int64_t count, const A* weight, const RowGradient<A>& row,
                       const PartialGradients<A>& partial, Sink& sink) {
  auto gradient = [&](auto with_parameters) {
    over_vectors<A>(count, [=, &sink](int64_t i, int64_t n) {
      vec<A> x = load_lanes(values + i, n), grad = load_lanes(grad_output + i, n);
      if constexpr (kCentered) x = (x - row.mean) - row.mean_rest;
      vec<A> normalized = x * row.rstd;
      vec<A> grad_input = grad * load_lanes(weight + i, n) * row.rstd - normalized * row.slope;
      if constexpr (kCentered) grad_input -= row.offset;
      sink.store(i, grad_input, n);
      if constexpr (decltype(with_parameters)::value) {
        store_lanes(partial.weight + i, vec<A>(load_lanes(partial.weight + i, n) + grad * normalized), n);
        if constexpr (kCentered) store_lanes(partial.bias + i, vec<A>(load_lanes(partial.bias + i, n) + grad), n);
      }
    });
  };
  partial.weight ? gradient(std::true_type{}) : gradient(std::false_type{});
}

// The partial sums [blocks, columns] of each parameter.
template <class A>
class BlockSums {
 public:
  BlockSums(bool needed, bool with_bias, int64_t blocks, int64_t columns)
      : columns_(columns),
        lease_(needed ? static_cast<size_t>(blocks * columns * (with_bias ? 2 : 1)) * sizeof(A) : 0),
        weight_(needed ? lease_.template as<A>() : nullptr),
        bias_(needed && with_bias ? weight_ + blocks * columns : nullptr) {}

  PartialGradients<A> at(int64_t block, int64_t column) const {
    PartialGradients<A> partial;
    if (weight_) partial.weight = weight_ + block * columns_ + column;
    if (bias_) partial.bias = bias_ + block * columns_ + column;
    return partial;
  }
  void clear(int64_t block, int64_t column, int64_t count) const {
    PartialGradients<A> partial = at(block, column);
    if (partial.weight) std::fill(partial.weight, partial.weight + count, A(0));
    if (partial.bias) std::fill(partial.bias, partial.bias + count, A(0));
  }

 private:
  struct Tag {};
  int64_t columns_;
  Lease<Tag> lease_;
  A* weight_;
  A* bias_;
};

// The sums over all blocks, in the parameter's dtype.
template <class A>
void add_blocks(const A* partial, int64_t blocks, int64_t columns, const Tensor& gradient) {
  dispatch_floating(gradient.dtype, "norm", [&](auto tag) {
    using P = typename decltype(tag)::type;
    P* target = gradient.as<P>();
    parallel_for(columns, kGrain / std::max<int64_t>(blocks, 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kPiece) {
        A sums[kPiece] = {};
        int64_t count = std::min(kPiece, end - i);
        for (int64_t block = 0; block < blocks; ++block)
          for (int64_t j = 0; j < count; ++j) sums[j] += partial[block * columns + i + j];
        for (int64_t j = 0; j < count; ++j) target[i + j] = from_acc<P>(static_cast<acc_t<P>>(sums[j]));
      }
    });
  });
}

struct BackwardTensors {
  const Tensor &grad_output, &input, &weight, &mean, &rstd;  // mean: absent for kCentered false
  bool needs_weight_grad, needs_bias_grad;
  const Tensor &grad_weight, &grad_bias;
};

// make_sink() gives each thread the Sink of its own, which writes the gradient of the input.
template <bool kCentered, class T, class MakeSink>
void backward(const BackwardTensors& tensors, const MakeSink& make_sink) {
  using A = acc_t<T>;
  Rows<T> grads(tensors.grad_output), input(tensors.input);
  int64_t rows = input.rows, columns = input.columns, pieces = pieces_of(columns);
  int64_t block_rows = rows_per_block(rows), blocks = (rows + block_rows - 1) / block_rows;
  const A* rstd = tensors.rstd.as<const A>();
  Parameter<A, WeightTag> weight(tensors.weight, columns, A(1));
  BlockSums<A> partial(tensors.needs_weight_grad || tensors.needs_bias_grad, kCentered, blocks, columns);

  auto mean_of = [&](int64_t row) { return kCentered ? tensors.mean.as<const A>()[row * tensors.mean.strides[0]] : 0; };
  auto sums_of_piece = [&](int64_t row, int64_t piece, T* grad_scratch, T* scratch) {
    int64_t begin = piece * kPiece, count = piece_size(columns, piece);
    return sums_of<kCentered>(grads.piece(row, begin, count, grad_scratch), input.piece(row, begin, count, scratch),
                              count, weight.values() + begin, mean_of(row));
  };
  auto gradient_of = [&](const RowSums& sums, int64_t row) {
    return RowGradient<A>(sums, 1.0 / static_cast<double>(columns), mean_of(row), rstd[row * tensors.rstd.strides[0]]);
  };
  auto write = [&](int64_t row, int64_t piece, const RowGradient<A>& gradient, T* grad_scratch, T* scratch,
                   auto& sink) {
    int64_t begin = piece * kPiece, count = piece_size(columns, piece);
    sink.begin(row, begin, count);
    gradient_of_piece<kCentered>(grads.piece(row, begin, count, grad_scratch), input.piece(row, begin, count, scratch),
                                 count, weight.values() + begin, gradient, partial.at(row / block_rows, begin), sink);
  };

  if (blocks < available_threads() && pieces > 1) {  // few long rows: threads share out their pieces
    std::vector<RowSums> sums(static_cast<size_t>(rows * pieces));
    std::vector<RowGradient<A>> gradients;
    parallel_for(rows * pieces, kGrain / kPiece, [&](int64_t begin, int64_t end) {
      T grad_scratch[kPiece], scratch[kPiece];
      for (int64_t item = begin; item < end; ++item)
        sums[item] = sums_of_piece(item / pieces, item % pieces, grad_scratch, scratch);
    });
    for (int64_t row = 0; row < rows; ++row) {
      RowSums total;
      for (int64_t piece = 0; piece < pieces; ++piece) total.include(sums[row * pieces + piece]);
      gradients.push_back(gradient_of(total, row));
    }
    parallel_for(blocks * pieces, 1, [&](int64_t begin, int64_t end) {
      T grad_scratch[kPiece], scratch[kPiece];
      auto sink = make_sink();
      for (int64_t item = begin; item < end; ++item) {
        int64_t block = item / pieces, piece = item % pieces;
        partial.clear(block, piece * kPiece, piece_size(columns, piece));
        for (int64_t row = block * block_rows; row < std::min(rows, (block + 1) * block_rows); ++row)
          write(row, piece, gradients[row], grad_scratch, scratch, sink);
      }
    });
  } else {
    int64_t together = rows_together(columns);
    parallel_for(blocks, kGrain / std::max<int64_t>(block_rows * columns, 1) + 1, [&](int64_t begin, int64_t end) {
      T grad_scratch[kPiece], scratch[kPiece];
      RowGradient<A> gradients[kTogether];
      auto sink = make_sink();
      for (int64_t block = begin; block < end; ++block) {
        partial.clear(block, 0, columns);
        int64_t end_row = std::min(rows, (block + 1) * block_rows);
        for (int64_t row = block * block_rows; row < end_row; row += together) {
          int64_t count = std::min(together, end_row - row);
          for (int64_t r = 0; r < count; ++r) {
            RowSums total;
            for (int64_t piece = 0; piece < pieces; ++piece)
              total.include(sums_of_piece(row + r, piece, grad_scratch, scratch));
            gradients[r] = gradient_of(total, row + r);
          }
          for (int64_t r = 0; r < count; ++r)
            for (int64_t piece = 0; piece < pieces; ++piece)
              write(row + r, piece, gradients[r], grad_scratch, scratch, sink);
        }
      }
    });
  }
  if (tensors.needs_weight_grad) add_blocks(partial.at(0, 0).weight, blocks, columns, tensors.grad_weight);
  if (tensors.needs_bias_grad) add_blocks(partial.at(0, 0).bias, blocks, columns, tensors.grad_bias);
}

// Stores the gradient, or nothing where it is not needed.
template <class T>
struct TensorSink {
  T* grad_input;
  int64_t columns;
  T* target = nullptr;

  void begin(int64_t row, int64_t column, int64_t /*count*/) {
    if (grad_input) target = grad_input + row * columns + column;
  }
  void store(int64_t i, vec<acc_t<T>> gradient, int64_t n) {
    if (target) store_lanes(target + i, gradient, n);
  }
};

}  // namespace bigkern::norm
