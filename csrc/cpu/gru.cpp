#include "activation.h"
#include "dtype.h"
#include "kernels.h"
#include "recurrent.h"
#include "workspace.h"

namespace bigkern {
namespace {

constexpr int64_t kGates = 3;  // reset, update, candidate
constexpr int64_t kSaved = 4;  // and the candidate's hidden sum

struct GradHiddenState;

template <class T>
struct GruForward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> gates_input, bias;
  T *output, *h_n;
  T* gates;  // null: not wanted

  GruForward(Clock clock, int64_t batch, int64_t hidden, const Tensor& gates_input, const Tensor& bias)
      : clock(clock), batch(batch), hidden(hidden), gates_input(gates_input), bias(bias) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      const int64_t shown_at = time * batch * hidden + place;
      const bool active = time < clock.length_of(row);
      vec<A> state = load_units(tile.left + r * tile.pitch + unit, count), shown = {};
      vec<A> saved[kSaved] = {};
      if (active) {
        auto input = [&](int64_t g) { return gates_input.load(time, row, g * hidden + unit, count); };
        auto sum = [&](int64_t g) {
          vec<A> z = load(tile.sums + r * tile.sums_pitch + g * lanes<A>);
          return bias.data ? z + bias.load(0, 0, g * hidden + unit, count) : z;
        };
        saved[0] = activate<Activation::sigmoid>(input(0) + sum(0));
        saved[1] = activate<Activation::sigmoid>(input(1) + sum(1));
        saved[3] = sum(2);
        saved[2] = activate<Activation::tanh>(input(2) + saved[0] * saved[3]);
        shown = saved[2] + saved[1] * (state - saved[2]);
      }
      store_units(output + shown_at, shown, count);
      // The state that goes on is the output as it was rounded.
      if (active) state = load_units(output + shown_at, count);
      store_units(tile.next + r * tile.pitch + unit, state, count);
      if (gates)
        for (int64_t g = 0; g < kSaved; ++g)
          store_units(gates + ((time * batch + row) * kSaved + g) * hidden + unit, saved[g], count);
      if (tile.step == clock.length - 1) store_units(h_n + place, state, count);
    });
  }
};

// h = n + z (h_before - n), n = tanh(input + r s): the input's and the hidden gradient differ in n's share, by r.
template <class T>
struct GruBackward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> grad_output, grad_h_n, gates, output, h0;
  T *grad_gates_input, *grad_gates_hidden, *grad_h0;
  A* grad_state;  // [batch, hidden]

  GruBackward(Clock clock, int64_t batch, int64_t hidden, const Tensor& grad_output, const Tensor& grad_h_n,
              const Tensor& gates, const Tensor& output, const Tensor& h0)
      : clock(clock),
        batch(batch),
        hidden(hidden),
        grad_output(grad_output),
        grad_h_n(grad_h_n),
        gates(gates),
        output(output),
        h0(h0) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.backward_time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      vec<A> grad = tile.step == 0 ? grad_h_n.load(0, row, unit, count) : load_units(grad_state + place, count);
      grad += load(tile.sums + r * tile.sums_pitch + u);
      if (tile.step == clock.length) return store_units(grad_h0 + place, grad, count);
      vec<A> grad_input[kGates] = {}, grad_hidden[kGates] = {};
      if (time < clock.length_of(row)) {
        grad += grad_output.load(time, row, unit, count);
        auto saved = [&](int64_t g) { return gates.load(time, row, g * hidden + unit, count); };
        const vec<A> reset = saved(0), update = saved(1), candidate = saved(2);
        const vec<A> before = clock.is_first(row, time) ? h0.load(0, row, unit, count)
                                                        : output.load(clock.time_before(time), row, unit, count);
        grad_input[2] = grad * (1 - update) * (1 - candidate * candidate);
        grad_input[1] = grad_hidden[1] = grad * (before - candidate) * update * (1 - update);
        grad_input[0] = grad_hidden[0] = grad_input[2] * saved(3) * reset * (1 - reset);
        grad_hidden[2] = grad_input[2] * reset;
        grad *= update;
      }
      for (int64_t g = 0; g < kGates; ++g) {
        const int64_t to = ((time * batch + row) * kGates + g) * hidden + unit;
        store_units(grad_gates_input + to, grad_input[g], count);
        store_units(grad_gates_hidden + to, grad_hidden[g], count);
        store_units(tile.next + r * tile.pitch + g * hidden + unit, grad_hidden[g], count);
      }
      store_units(grad_state + place, grad, count);
    });
  }
};

}  // namespace

void gru_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                 const Tensor& lengths, bool reverse, bool save_gates, const Tensor& output, const Tensor& h_n,
                 const Tensor& gates) {
  dispatch_floating(output.dtype, "gru_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t length = output.sizes[0], batch = output.sizes[1], hidden = output.sizes[2];
    GruForward<T> cell({length, reverse, lengths}, batch, hidden, gates_input, bias_hh);
    cell.output = output.as<T>();
    cell.h_n = h_n.as<T>();
    cell.gates = save_gates ? gates.as<T>() : nullptr;
    run_recurrence<acc_t<T>>(weight_hh, h0, length, cell);
  });
}

void gru_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& gates, const Tensor& output,
                  const Tensor& weight_hh, const Tensor& h0, const Tensor& lengths, bool reverse,
                  const Tensor& grad_gates_input, const Tensor& grad_gates_hidden, const Tensor& grad_h0) {
  dispatch_floating(output.dtype, "gru_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const int64_t length = output.sizes[0], batch = output.sizes[1], hidden = output.sizes[2];
    Lease<GradHiddenState> state(batch * hidden * sizeof(A));
    GruBackward<T> cell({length, reverse, lengths}, batch, hidden, grad_output, grad_h_n, gates, output, h0);
    cell.grad_gates_input = grad_gates_input.as<T>();
    cell.grad_gates_hidden = grad_gates_hidden.as<T>();
    cell.grad_h0 = grad_h0.as<T>();
    cell.grad_state = state.template as<A>();
    run_recurrence_backward<A>(weight_hh, batch, length, cell);
  });
}

}  // namespace bigkern
