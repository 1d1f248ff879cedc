#include "activation.h"
#include "kernels.h"
#include "norm.h"

namespace bigkern {
namespace {

constexpr int64_t kPiece = 1024;  // columns

// gate and up, [rows, columns] each, or both side by side in one matrix.
template <class T>
struct Gates {
  norm::Rows<T> gate, up;
  int64_t columns;

  Gates(const Tensor& first, const Tensor& second)
      : gate(first), up(second.defined() ? second : first), columns(first.sizes[1]) {
    if (second.defined()) return;
    columns /= 2;
    up.data += columns * up.column_stride;
  }
};

// Calls body(row, begin, count) for pieces of all rows.
template <class Body>
void over_pieces(int64_t rows, int64_t columns, const Body& body) {
  int64_t pieces = (columns + kPiece - 1) / kPiece;
  int64_t grain = norm::kGrain / std::max<int64_t>(std::min(columns, kPiece), 1) + 1;
  parallel_for(rows * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      int64_t begin = item % pieces * kPiece;
      body(item / pieces, begin, std::min(kPiece, columns - begin));
    }
  });
}

template <class Body>
void dispatch_gate(const std::string& activation, const Body& body) {
  using Kind = Activation;
  switch (activation_from_name(activation)) {
    case Kind::silu: return body(std::integral_constant<Kind, Kind::silu>{});
    case Kind::gelu: return body(std::integral_constant<Kind, Kind::gelu>{});
    case Kind::gelu_tanh: return body(std::integral_constant<Kind, Kind::gelu_tanh>{});
    default: throw std::invalid_argument("gated_act: no gate of activation " + activation);
  }
}

}  // namespace

void gated_act_forward(const Tensor& gate, const Tensor& up, const std::string& activation, const Tensor& output) {
  dispatch_floating(gate.dtype, "gated_act_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Gates<T> gates(gate, up);
    dispatch_gate(activation, [&](auto kind) {
      over_pieces(gates.gate.rows, gates.columns, [&](int64_t row, int64_t begin, int64_t count) {
        T gate_scratch[kPiece], up_scratch[kPiece];
        const T* g = gates.gate.piece(row, begin, count, gate_scratch);
        const T* u = gates.up.piece(row, begin, count, up_scratch);
        T* target = output.as<T>() + row * gates.columns + begin;
        norm::over_vectors<acc_t<T>>(count, [=](int64_t i, int64_t n) {
          norm::store_lanes(target + i, activate<kind>(norm::load_lanes(g + i, n)) * norm::load_lanes(u + i, n), n);
        });
      });
    });
  });
}

void gated_act_backward(const Tensor& grad_output, const Tensor& gate, const Tensor& up, const std::string& activation,
                        const Tensor& grad_gate, const Tensor& grad_up) {
  dispatch_floating(gate.dtype, "gated_act_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Gates<T> gates(gate, up);
    norm::Rows<T> grads(grad_output);
    bool packed = !up.defined();
    int64_t row_stride = gate.sizes[1];
    T* to_gate = grad_gate.as<T>();
    T* to_up = packed ? to_gate + gates.columns : grad_up.as<T>();
    dispatch_gate(activation, [&](auto kind) {
      over_pieces(gates.gate.rows, gates.columns, [&](int64_t row, int64_t begin, int64_t count) {
        T grad_scratch[kPiece], gate_scratch[kPiece], up_scratch[kPiece];
        const T* grad = grads.piece(row, begin, count, grad_scratch);
        const T* g = gates.gate.piece(row, begin, count, gate_scratch);
        const T* u = gates.up.piece(row, begin, count, up_scratch);
        int64_t start = row * row_stride + begin;
        norm::over_vectors<acc_t<T>>(count, [=](int64_t i, int64_t n) {
          vec<acc_t<T>> x = norm::load_lanes(g + i, n), d = norm::load_lanes(grad + i, n);
          norm::store_lanes(to_up + start + i, vec<acc_t<T>>(d * activate<kind>(x)), n);
          norm::store_lanes(to_gate + start + i,
                            activation_backward<kind>(vec<acc_t<T>>(d * norm::load_lanes(u + i, n)), x), n);
        });
      });
    });
  });
}

}  // namespace bigkern
