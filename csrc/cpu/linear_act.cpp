#include "activation.h"
#include "dtype.h"
#include "gemm.h"
#include "kernels.h"

namespace bigkern {
namespace {

template <class T>
Matrix<T> matrix(const Tensor& tensor) {
  return {tensor.as<const T>(), tensor.sizes[0], tensor.sizes[1], tensor.strides[0], tensor.strides[1]};
}
// What becomes of the finished sums: bias, activation, and the stores. The outputs' rows are dense.
template <class T>
struct LinearEpilogue {
  T* output;
  int64_t row_length;
  T* pre_activation = nullptr;  // null: not wanted
  const T* bias = nullptr;
  Activation activation = Activation::none;

  void operator()(int64_t row, int64_t col, int64_t rows, int64_t cols, const acc_t<T>* sums, int64_t pitch) const {
    const int64_t offset = row * row_length + col;
    dispatch_activation(activation, [&](auto kind) {
      finish_tile<kind>(rows, cols, sums, pitch, bias ? bias + col : nullptr,
                        pre_activation ? pre_activation + offset : nullptr, output + offset, row_length);
    });
  }

  // Everything by value: the stores might alias what is reached through a reference, which would be read anew each
  // time.
  template <Activation kind>
  static void finish_tile(int64_t rows, int64_t cols, const acc_t<T>* sums, int64_t pitch, const T* bias,
                          T* pre_activation, T* output, int64_t row_length) {
    constexpr int kLanes = lanes<acc_t<T>>;
    for (int64_t r = 0; r < rows; ++r) {
      int64_t c = 0;
      for (; c + kLanes <= cols; c += kLanes) {
        vec<acc_t<T>> z = load(sums + c);
        if (bias) z += load(bias + c);
        if (pre_activation) store(pre_activation + c, z);
        store(output + c, activate<kind>(z));
      }
      if (const int64_t rest = cols - c) {
        vec<acc_t<T>> z = load_partial(sums + c, rest);
        if (bias) z += load_partial(bias + c, rest);
        if (pre_activation) store_partial(pre_activation + c, z, rest);
        store_partial(output + c, activate<kind>(z), rest);
      }
      sums += pitch;
      output += row_length;
      if (pre_activation) pre_activation += row_length;
    }
  }
};

struct BiasWorkspace;

template <class T>
void forward_typed(const Tensor& input, const Tensor& weight, const Tensor& bias, Activation activation,
                   bool save_pre_activation, const Tensor& output, const Tensor& pre_activation) {
  const int64_t N = weight.sizes[0];
  LinearEpilogue<T> epilogue = {output.as<T>(), input.sizes[0] == 1 ? N : output.strides[0]};
  epilogue.activation = activation;
  if (save_pre_activation) epilogue.pre_activation = pre_activation.as<T>();
  const bool strided_bias = bias.defined() && bias.strides[0] != 1;
  Lease<BiasWorkspace> dense_bias(strided_bias ? N * sizeof(T) : 0);
  if (bias.defined()) epilogue.bias = bias.as<T>();
  if (strided_bias) {
    for (int64_t n = 0; n < N; ++n) dense_bias.template as<T>()[n] = bias.as<T>()[n * bias.strides[0]];
    epilogue.bias = dense_bias.template as<T>();
  }
  gemm(matrix<T>(input), transposed(matrix<T>(weight)), epilogue);
}

// ---- backward -------------------------------------------------------------------------------------------------------

struct GradZWorkspace;
struct ColumnSumWorkspace;

// A piece of the gradient that one thread works on. Fixed sizes: sums do not depend on the number of threads.
constexpr int64_t kPieceRows = 64;
constexpr int64_t kPieceCols = 256;

// `count` neighbours of a row with unit stride: in place, or gathered into `buffer`.
template <class T>
const T* row_piece(const Matrix<T>& m, int64_t row, int64_t col, int64_t count, T* buffer) {
  const T* from = m.data + row * m.row_stride + col * m.col_stride;
  if (m.col_stride == 1) return from;
  for (int64_t c = 0; c < count; ++c) buffer[c] = from[c * m.col_stride];
  return buffer;
}

// grad_z = grad_output * act'(saved) for one piece, and the sum of its rows; null: not wanted.
template <Activation kind, class T>
void grad_z_piece(const Matrix<T>& grad_output, const Matrix<T>& saved, int64_t row, int64_t col, int64_t rows,
                  int64_t cols, T* grad_z, acc_t<T>* column_sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  T grad_buffer[kPieceCols], saved_buffer[kPieceCols];
  vec<A> sums[kPieceCols / kLanes] = {};
  for (int64_t r = row; r < row + rows; ++r) {
    const T* grad_row = row_piece(grad_output, r, col, cols, grad_buffer);
    const T* saved_row = kind == Activation::none ? grad_row : row_piece(saved, r, col, cols, saved_buffer);
    T* grad_z_row = grad_z ? grad_z + r * grad_output.cols + col : nullptr;
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      vec<A> z = activation_backward<kind>(load(grad_row + c), load(saved_row + c));
      if (grad_z_row) store(grad_z_row + c, z);
      sums[c / kLanes] += z;
    }
    if (int64_t rest = cols - c) {
      vec<A> z = activation_backward<kind>(load_partial(grad_row + c, rest), load_partial(saved_row + c, rest));
      if (grad_z_row) store_partial(grad_z_row + c, z, rest);
      sums[c / kLanes] += z;
    }
  }
  if (!column_sums) return;
  for (int64_t c = 0; c < cols; c += kLanes)
    store_partial(column_sums + col + c, sums[c / kLanes], std::min<int64_t>(kLanes, cols - c));
}

// Fills grad_z [M, N] and grad_bias [N]; null: not wanted. One pass over grad_output: the products that follow read
// grad_z several times, and would each repeat the activation's derivative if it were taken while packing.
template <class T>
void grad_z_and_bias(const Matrix<T>& grad_output, const Matrix<T>& saved, Activation activation, T* grad_z,
                     T* grad_bias) {
  using A = acc_t<T>;
  const int64_t M = grad_output.rows, N = grad_output.cols;
  const int64_t row_pieces = (M + kPieceRows - 1) / kPieceRows, col_pieces = (N + kPieceCols - 1) / kPieceCols;
  Lease<ColumnSumWorkspace> lease(grad_bias ? row_pieces * N * sizeof(A) : 0);
  A* partial_sums = lease.template as<A>();  // [row_pieces, N]
  dispatch_activation(activation, [&](auto kind) {
    parallel_for(row_pieces * col_pieces, 4, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        int64_t row = piece / col_pieces * kPieceRows, col = piece % col_pieces * kPieceCols;
        grad_z_piece<kind>(grad_output, saved, row, col, std::min(kPieceRows, M - row), std::min(kPieceCols, N - col),
                           grad_z, grad_bias ? partial_sums + row / kPieceRows * N : nullptr);
      }
    });
  });
  if (!grad_bias) return;
  for (int64_t n = 0; n < N; ++n) {
    A sum = 0;
    for (int64_t piece = 0; piece < row_pieces; ++piece) sum += partial_sums[piece * N + n];
    grad_bias[n] = from_acc<T>(sum);
  }
}

template <class T>
void backward_typed(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& saved,
                    Activation activation, bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                    const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias) {
  Matrix<T> grad_z = matrix<T>(grad_output);
  const bool has_activation = activation != Activation::none;
  const int64_t elements = grad_z.rows * grad_z.cols;
  Lease<GradZWorkspace> lease(has_activation ? elements * sizeof(T) : 0);
  if (has_activation || needs_bias_grad)
    grad_z_and_bias(grad_z, has_activation ? matrix<T>(saved) : grad_z, activation,
                    has_activation ? lease.template as<T>() : nullptr, needs_bias_grad ? grad_bias.as<T>() : nullptr);
  if (has_activation) grad_z = {lease.template as<T>(), grad_z.rows, grad_z.cols, grad_z.cols, 1};
  const int64_t K = input.sizes[1];
  if (needs_input_grad) gemm(grad_z, matrix<T>(weight), LinearEpilogue<T>{grad_input.as<T>(), K});
  if (needs_weight_grad) gemm(transposed(grad_z), matrix<T>(input), LinearEpilogue<T>{grad_weight.as<T>(), K});
}

}  // namespace

void linear_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const std::string& activation,
                        bool save_pre_activation, const Tensor& output, const Tensor& pre_activation) {
  dispatch_floating(input.dtype, "linear_act_forward", [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(input, weight, bias, activation_from_name(activation),
                                                save_pre_activation, output, pre_activation);
  });
}

void linear_act_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& saved,
                         const std::string& activation, bool needs_input_grad, bool needs_weight_grad,
                         bool needs_bias_grad, const Tensor& grad_input, const Tensor& grad_weight,
                         const Tensor& grad_bias) {
  dispatch_floating(grad_output.dtype, "linear_act_backward", [&](auto tag) {
    backward_typed<typename decltype(tag)::type>(grad_output, input, weight, saved, activation_from_name(activation),
                                                 needs_input_grad, needs_weight_grad, needs_bias_grad, grad_input,
                                                 grad_weight, grad_bias);
  });
}

}  // namespace bigkern
