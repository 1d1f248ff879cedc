#include "activation.h"
#include "dtype.h"
#include "kernels.h"
#include "recurrent.h"
#include "workspace.h"

namespace bigkern {
namespace {

constexpr int64_t kGates = 4;  // input, forget, cell, output

struct CellState;
struct GradCellState;
struct GradHiddenState;

template <class A>
inline vec<A> sigmoid_of(vec<A> x) {
  return activate<Activation::sigmoid>(x);
}
template <class A>
inline vec<A> tanh_of(vec<A> x) {
  return activate<Activation::tanh>(x);
}

template <class T>
struct LstmForward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> gates_input, bias, c0;
  T *output, *h_n, *c_n;
  T* gates;       // null: not wanted
  A* cells;       // null: not wanted
  A* cell_state;  // [batch, hidden]

  LstmForward(Clock clock, int64_t batch, int64_t hidden, const Tensor& gates_input, const Tensor& bias,
              const Tensor& c0)
      : clock(clock), batch(batch), hidden(hidden), gates_input(gates_input), bias(bias), c0(c0) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      const int64_t saved = time * batch * hidden + place;
      vec<A> cell = tile.step == 0 ? c0.load(0, row, unit, count) : load_units(cell_state + place, count);
      vec<A> state = load_units(tile.left + r * tile.pitch + unit, count), shown = {};
      vec<A> gate[kGates] = {};
      if (time < clock.length_of(row)) {
        for (int64_t g = 0; g < kGates; ++g) {
          gate[g] = load(tile.sums + r * tile.sums_pitch + g * lanes<A>);
          gate[g] += gates_input.load(time, row, g * hidden + unit, count);
          if (bias.data) gate[g] += bias.load(0, 0, g * hidden + unit, count);
          gate[g] = g == 2 ? tanh_of<A>(gate[g]) : sigmoid_of<A>(gate[g]);
        }
        cell = gate[1] * cell + gate[0] * gate[2];
        shown = gate[3] * tanh_of<A>(cell);
      }
      store_units(output + saved, shown, count);
      // The state that goes on is the output as it was rounded.
      if (time < clock.length_of(row)) state = load_units(output + saved, count);
      store_units(cell_state + place, cell, count);
      store_units(tile.next + r * tile.pitch + unit, state, count);
      if (gates)
        for (int64_t g = 0; g < kGates; ++g)
          store_units(gates + (time * batch + row) * kGates * hidden + g * hidden + unit, gate[g], count);
      if (cells) store_units(cells + saved, cell, count);
      if (tile.step == clock.length - 1) {
        store_units(h_n + place, state, count);
        store_units(c_n + place, cell, count);
      }
    });
  }
};

// With a = the cell's state, h = o tanh(a), a = f a_before + i g.
template <class T>
struct LstmBackward final : RecurrentCell<acc_t<T>> {
  using A = acc_t<T>;
  Clock clock;
  int64_t batch, hidden;
  UnitReader<T> grad_output, grad_h_n, grad_c_n, gates, c0;
  UnitReader<A> cells;
  T *grad_gates, *grad_h0, *grad_c0;
  A *grad_hidden_state, *grad_cell_state;  // [batch, hidden]

  LstmBackward(Clock clock, int64_t batch, int64_t hidden, const Tensor& grad_output, const Tensor& grad_h_n,
               const Tensor& grad_c_n, const Tensor& gates, const Tensor& cells, const Tensor& c0)
      : clock(clock),
        batch(batch),
        hidden(hidden),
        grad_output(grad_output),
        grad_h_n(grad_h_n),
        grad_c_n(grad_c_n),
        gates(gates),
        c0(c0),
        cells(cells) {}

  void run(const RecurrentTile<A>& tile) const override {
    const int64_t time = clock.backward_time(tile.step);
    for_each_vector(tile, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t row = tile.row + r, unit = tile.unit + u, place = row * hidden + unit;
      const bool is_first_step = tile.step == 0;
      vec<A> grad_cell =
          is_first_step ? grad_c_n.load(0, row, unit, count) : load_units(grad_cell_state + place, count);
      vec<A> grad = is_first_step ? grad_h_n.load(0, row, unit, count) : load_units(grad_hidden_state + place, count);
      grad += load(tile.sums + r * tile.sums_pitch + u);
      if (tile.step == clock.length) {
        store_units(grad_h0 + place, grad, count);
        store_units(grad_c0 + place, grad_cell, count);
        return;
      }
      vec<A> grad_gate[kGates] = {};
      if (time < clock.length_of(row)) {
        grad += grad_output.load(time, row, unit, count);
        auto gate = [&](int64_t g) { return gates.load(time, row, g * hidden + unit, count); };
        const vec<A> input = gate(0), forget = gate(1), candidate = gate(2), out = gate(3);
        const vec<A> before = clock.is_first(row, time) ? c0.load(0, row, unit, count)
                                                        : cells.load(clock.time_before(time), row, unit, count);
        const vec<A> squashed = tanh_of<A>(cells.load(time, row, unit, count));
        grad_cell += grad * out * (1 - squashed * squashed);
        grad_gate[0] = grad_cell * candidate * input * (1 - input);
        grad_gate[1] = grad_cell * before * forget * (1 - forget);
        grad_gate[2] = grad_cell * input * (1 - candidate * candidate);
        grad_gate[3] = grad * squashed * out * (1 - out);
        grad_cell *= forget;
        grad = vec<A>{};
      }
      for (int64_t g = 0; g < kGates; ++g) {
        store_units(grad_gates + ((time * batch + row) * kGates + g) * hidden + unit, grad_gate[g], count);
        store_units(tile.next + r * tile.pitch + g * hidden + unit, grad_gate[g], count);
      }
      store_units(grad_hidden_state + place, grad, count);
      store_units(grad_cell_state + place, grad_cell, count);
    });
  }
};

}  // namespace

void lstm_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                  const Tensor& c0, const Tensor& lengths, bool reverse, bool save_gates, const Tensor& output,
                  const Tensor& h_n, const Tensor& c_n, const Tensor& gates, const Tensor& cells) {
  dispatch_floating(output.dtype, "lstm_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const int64_t length = output.sizes[0], batch = output.sizes[1], hidden = output.sizes[2];
    Lease<CellState> cell_state(batch * hidden * sizeof(A));
    LstmForward<T> cell({length, reverse, lengths}, batch, hidden, gates_input, bias_hh, c0);
    cell.output = output.as<T>();
    cell.h_n = h_n.as<T>();
    cell.c_n = c_n.as<T>();
    cell.gates = save_gates ? gates.as<T>() : nullptr;
    cell.cells = save_gates ? cells.as<A>() : nullptr;
    cell.cell_state = cell_state.template as<A>();
    run_recurrence<A>(weight_hh, h0, length, cell);
  });
}

void lstm_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& grad_c_n, const Tensor& gates,
                   const Tensor& cells, const Tensor& weight_hh, const Tensor& c0, const Tensor& lengths, bool reverse,
                   const Tensor& grad_gates, const Tensor& grad_h0, const Tensor& grad_c0) {
  dispatch_floating(gates.dtype, "lstm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    const int64_t length = cells.sizes[0], batch = cells.sizes[1], hidden = cells.sizes[2];
    Lease<GradHiddenState> hidden_state(batch * hidden * sizeof(A));
    Lease<GradCellState> cell_state(batch * hidden * sizeof(A));
    LstmBackward<T> cell({length, reverse, lengths}, batch, hidden, grad_output, grad_h_n, grad_c_n, gates, cells, c0);
    cell.grad_gates = grad_gates.as<T>();
    cell.grad_h0 = grad_h0.as<T>();
    cell.grad_c0 = grad_c0.as<T>();
    cell.grad_hidden_state = hidden_state.template as<A>();
    cell.grad_cell_state = cell_state.template as<A>();
    run_recurrence_backward<A>(weight_hh, batch, length, cell);
  });
}

}  // namespace bigkern
