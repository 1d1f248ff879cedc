#include "activation.h"
#include "dtype.h"
#include "kernels.h"
#include "recurrent.h"
#include "workspace.h"

namespace bigkern {
namespace {

struct GradHiddenState;

template <class T>
struct RnnForward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> gates_input, bias;
  Activation nonlinearity;
  T *output, *h_n;

  RnnForward(Clock clock, int64_t batch, int64_t hidden, const Tensor& gates_input, const Tensor& bias)
      : clock(clock), batch(batch), hidden(hidden), gates_input(gates_input), bias(bias) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      const int64_t shown_at = time * batch * hidden + place;
      const bool active = time < clock.length_of(row);
      vec<A> state = load_units(tile.left + r * tile.pitch + unit, count), shown = {};
      if (active) {
        shown = load(tile.sums + r * tile.sums_pitch + u) + gates_input.load(time, row, unit, count);
        if (bias.data) shown += bias.load(0, 0, unit, count);
        shown =
            nonlinearity == Activation::tanh ? activate<Activation::tanh>(shown) : activate<Activation::relu>(shown);
      }
      store_units(output + shown_at, shown, count);
      // The state that goes on is the output as it was rounded.
      if (active) state = load_units(output + shown_at, count);
      store_units(tile.next + r * tile.pitch + unit, state, count);
      if (tile.step == clock.length - 1) store_units(h_n + place, state, count);
    });
  }
};

template <class T>
struct RnnBackward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> grad_output, grad_h_n, output;
  Activation nonlinearity;
  T *grad_gates, *grad_h0;
  A* grad_state;  // [batch, hidden]

  RnnBackward(Clock clock, int64_t batch, int64_t hidden, const Tensor& grad_output, const Tensor& grad_h_n,
              const Tensor& output)
      : clock(clock), batch(batch), hidden(hidden), grad_output(grad_output), grad_h_n(grad_h_n), output(output) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.backward_time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      vec<A> grad = tile.step == 0 ? grad_h_n.load(0, row, unit, count) : load_units(grad_state + place, count);
      grad += load(tile.sums + r * tile.sums_pitch + u);
      if (tile.step == clock.length) return store_units(grad_h0 + place, grad, count);
      vec<A> grad_gate = {};
      if (time < clock.length_of(row)) {
        grad += grad_output.load(time, row, unit, count);
        const vec<A> result = output.load(time, row, unit, count);
        grad_gate = nonlinearity == Activation::tanh ? activation_backward<Activation::tanh>(grad, result)
                                                     : activation_backward<Activation::relu>(grad, result);
        grad = vec<A>{};
      }
      store_units(grad_gates + time * batch * hidden + place, grad_gate, count);
      store_units(tile.next + r * tile.pitch + unit, grad_gate, count);
      store_units(grad_state + place, grad, count);
    });
  }
};

}  // namespace

void rnn_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                 const Tensor& lengths, bool reverse, const std::string& nonlinearity, const Tensor& output,
                 const Tensor& h_n) {
  dispatch_floating(output.dtype, "rnn_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t length = output.sizes[0], batch = output.sizes[1], hidden = output.sizes[2];
    RnnForward<T> cell({length, reverse, lengths}, batch, hidden, gates_input, bias_hh);
    cell.nonlinearity = activation_from_name(nonlinearity);
    cell.output = output.as<T>();
    cell.h_n = h_n.as<T>();
    run_recurrence<acc_t<T>>(weight_hh, h0, length, cell);
  });
}

void rnn_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& output, const Tensor& weight_hh,
                  const Tensor& lengths, bool reverse, const std::string& nonlinearity, const Tensor& grad_gates,
                  const Tensor& grad_h0) {
  dispatch_floating(output.dtype, "rnn_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const int64_t length = output.sizes[0], batch = output.sizes[1], hidden = output.sizes[2];
    Lease<GradHiddenState> state(batch * hidden * sizeof(A));
    RnnBackward<T> cell({length, reverse, lengths}, batch, hidden, grad_output, grad_h_n, output);
    cell.nonlinearity = activation_from_name(nonlinearity);
    cell.grad_gates = grad_gates.as<T>();
    cell.grad_h0 = grad_h0.as<T>();
    cell.grad_state = state.template as<A>();
    run_recurrence_backward<A>(weight_hh, batch, length, cell);
  });
}

}  // namespace bigkern
