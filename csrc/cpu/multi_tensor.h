// Element-wise updates of many tensors in one parallel loop: what every optimizer is made of.
//
// All elements of all tensors are one long line, which the threads divide evenly. Each tensor is walked in the order in
// which its parameter lies in memory; an operand that is laid out in another order passes through a small copy.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "dtype.h"
#include "parallel.h"

namespace bigkern {

constexpr int64_t kUpdateGrain = 1 << 14;  // elements that are worth waking a thread for
constexpr int64_t kWindow = 512;           // elements copied at a time where an operand is not in order

inline double read_scalar(const Tensor& scalar) {
  return scalar.dtype == DType::float64 ? *scalar.as<double>() : double{*scalar.as<float>()};
}
inline void write_scalar(const Tensor& scalar, double value) {
  if (scalar.dtype == DType::float64)
    *scalar.as<double>() = value;
  else
    *scalar.as<float>() = static_cast<float>(value);
}

// ---- the order of elements ----------------------------------------------------------------------------------------

// Sizes and dimensions from the outermost to the innermost in memory; of a tensor with gaps, in its logical order.
struct ElementOrder {
  int ndim = 0;
  int dims[kMaxDims];
  int64_t sizes[kMaxDims];

  explicit ElementOrder(const Tensor& tensor) {
    for (int dim = 0; dim < tensor.ndim; ++dim)
      if (tensor.sizes[dim] != 1) dims[ndim++] = dim;
    int logical[kMaxDims];
    std::copy(dims, dims + ndim, logical);
    std::stable_sort(dims, dims + ndim, [&](int a, int b) { return tensor.strides[a] > tensor.strides[b]; });
    for (int i = 0; i < ndim; ++i) sizes[i] = tensor.sizes[dims[i]];
    if (fits(tensor)) return;
    std::copy(logical, logical + ndim, dims);
    for (int i = 0; i < ndim; ++i) sizes[i] = tensor.sizes[dims[i]];
  }

  // Whether `tensor` lies in memory in this order, without gaps.
  bool fits(const Tensor& tensor) const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (tensor.strides[dims[i]] != expected) return false;
      expected *= sizes[i];
    }
    return true;
  }

  // Calls visit(i, offset of element first + i) for i in [0, count).
  template <class Visit>
  void walk(const Tensor& tensor, int64_t first, int64_t count, const Visit& visit) const {
    int64_t index[kMaxDims] = {}, offset = 0;
    for (int i = ndim - 1; i >= 0; --i) {
      index[i] = first % sizes[i];
      first /= sizes[i];
      offset += index[i] * tensor.strides[dims[i]];
    }
    for (int64_t done = 0; done < count; ++done) {
      visit(done, offset);
      for (int i = ndim - 1; i >= 0; --i) {
        offset += tensor.strides[dims[i]];
        if (++index[i] < sizes[i]) break;
        offset -= sizes[i] * tensor.strides[dims[i]];
        index[i] = 0;
      }
    }
  }
};

// `count` elements of a tensor side by side: where they are, or in `buffer`.
template <class T>
T* open_window(const Tensor& tensor, bool in_order, const ElementOrder& order, int64_t first, int64_t count,
               T* buffer) {
  T* data = tensor.as<T>();
  if (in_order) return data + first;
  order.walk(tensor, first, count, [&](int64_t i, int64_t offset) { buffer[i] = data[offset]; });
  return buffer;
}
template <class T>
void close_window(const Tensor& tensor, bool in_order, const ElementOrder& order, int64_t first, int64_t count,
                  const T* buffer) {
  T* data = tensor.as<T>();
  if (in_order) return;
  order.walk(tensor, first, count, [&](int64_t i, int64_t offset) { data[offset] = buffer[i]; });
}

// ---- one line of elements -----------------------------------------------------------------------------------------

// Calls body(tensor number, first, last) in parallel, on ranges of elements that cover all tensors.
template <class Body>
void over_elements(const TensorList& tensors, const Body& body) {
  std::vector<int64_t> starts(tensors.size() + 1, 0);
  for (size_t i = 0; i < tensors.size(); ++i) starts[i + 1] = starts[i] + tensors[i].numel();
  constexpr int64_t kUnit = 256;  // threads meet at whole vectors, and not inside a cache line
  int64_t total = starts.back(), units = (total + kUnit - 1) / kUnit;
  parallel_for(units, kUpdateGrain / kUnit, [&](int64_t begin, int64_t end) {
    int64_t first = begin * kUnit, last = std::min(end * kUnit, total);
    auto i = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1);
    for (; first < last; ++i) {
      int64_t stop = std::min(last, starts[i + 1]);
      if (first < stop) body(i, first - starts[i], stop - starts[i]);
      first = stop;
    }
  });
}

// ---- updates ------------------------------------------------------------------------------------------------------

// start + weight * (end - start), from the nearer end: exact at weight 0 and at weight 1.
template <class A>
vec<A> interpolate(vec<A> start, vec<A> end, A weight) {
  vec<A> way = end - start;
  return weight < A(0.5) ? start + way * weight : end - way * (1 - weight);
}

// What every optimizer is given beside its own state.
struct UpdateArguments {
  const TensorList& params;
  const TensorList& grads;
  const TensorList& master_params;  // empty, or one for each parameter
  const Tensor& grad_factor;        // gradients are multiplied by it, where there is one
  const Tensor& found_inf;          // nothing but zero_grad is done where it is not 0
  bool maximize;
  bool zero_grad;

  bool skips() const { return found_inf.defined() && read_scalar(found_inf) != 0; }
};

template <int kStates>
using StateLists = const TensorList* const[kStates];

// Updates `count` elements side by side. S: the type of the state, and of the master weight if there is one.
// `update` is a copy: the compiler then knows that no store of an element changes what it holds.
template <int kStates, class T, class S, class Update>
void update_run(T* param, T* grad, S* master, S* const (&state_pointers)[kStates], int64_t count, acc_t<S> grad_factor,
                bool maximize, bool zero_grad, Update update) {
  using A = acc_t<S>;
  constexpr int kLanes = lanes<A>;
  S* state[kStates];
  std::copy(state_pointers, state_pointers + kStates, state);
  vec<A> factor = broadcast(maximize ? -grad_factor : grad_factor);
  auto at = [&](int64_t i, auto read, auto write) {
    vec<A> g = read(grad + i) * factor;
    vec<A> w = master ? read(master + i) : read(param + i);
    vec<A> s[kStates];
    for (int k = 0; k < kStates; ++k)
      if (state[k]) s[k] = read(state[k] + i);
    update(w, g, s);
    if (master) write(master + i, w);
    write(param + i, w);
    for (int k = 0; k < kStates; ++k)
      if (state[k]) write(state[k] + i, s[k]);
    if (zero_grad) write(grad + i, vec<A>{});
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    at(i, [](const auto* p) { return load(p); }, [](auto* p, vec<A> v) { store(p, v); });
  if (i < count) {
    int64_t rest = count - i;
    at(i, [&](const auto* p) { return load_partial(p, rest); }, [&](auto* p, vec<A> v) { store_partial(p, v, rest); });
  }
}

template <int kStates, class T, class S, class Update>
void update_tensor(const UpdateArguments& arguments, StateLists<kStates>& states, size_t which, int64_t first,
                   int64_t last, const Update& update) {
  const Tensor &param = arguments.params[which], &grad = arguments.grads[which];
  const Tensor master = arguments.master_params.empty() ? Tensor{} : arguments.master_params[which];
  ElementOrder order(param);
  auto in_order = [&](const Tensor& tensor) { return !tensor.defined() || order.fits(tensor); };
  bool param_fits = order.fits(param), grad_fits = in_order(grad), master_fits = in_order(master);
  bool all_fit = param_fits && grad_fits && master_fits;
  Tensor state[kStates];
  bool state_fits[kStates];
  for (int k = 0; k < kStates; ++k) {
    if (!states[k]->empty()) state[k] = (*states[k])[which];
    state_fits[k] = in_order(state[k]);
    all_fit = all_fit && state_fits[k];
  }
  using A = acc_t<S>;
  A factor = arguments.grad_factor.defined() ? static_cast<A>(read_scalar(arguments.grad_factor)) : A(1);
  int64_t window = all_fit ? last - first : kWindow;
  T param_buffer[kWindow], grad_buffer[kWindow];
  S master_buffer[kWindow], state_buffer[kStates][kWindow];
  for (; first < last; first += window) {
    int64_t count = std::min(window, last - first);
    T* p = open_window(param, param_fits, order, first, count, param_buffer);
    T* g = open_window(grad, grad_fits, order, first, count, grad_buffer);
    S* m = master.defined() ? open_window(master, master_fits, order, first, count, master_buffer) : nullptr;
    S* s[kStates];
    for (int k = 0; k < kStates; ++k)
      s[k] = state[k].defined() ? open_window(state[k], state_fits[k], order, first, count, state_buffer[k]) : nullptr;
    update_run<kStates>(p, g, m, s, count, factor, arguments.maximize, arguments.zero_grad, update);
    close_window(param, param_fits, order, first, count, p);
    if (arguments.zero_grad) close_window(grad, grad_fits, order, first, count, g);
    if (m) close_window(master, master_fits, order, first, count, m);
    for (int k = 0; k < kStates; ++k)
      if (s[k]) close_window(state[k], state_fits[k], order, first, count, s[k]);
  }
}

// Adds one to every step (unless the step is skipped); returns their values.
inline std::vector<double> count_steps(const TensorList& state_steps, bool skip) {
  std::vector<double> steps;
  steps.reserve(state_steps.size());
  for (const Tensor& state_step : state_steps) {
    double step = read_scalar(state_step) + (skip ? 0 : 1);
    write_scalar(state_step, step);
    steps.push_back(step);
  }
  return steps;
}

// Zeroes every gradient: what is left of a step that is skipped.
inline void zero_gradients(const TensorList& grads) {
  over_elements(grads, [&](size_t which, int64_t first, int64_t last) {
    const Tensor& grad = grads[which];
    ElementOrder order(grad);
    dispatch_floating(grad.dtype, "zero_grad", [&](auto tag) {
      using T = typename decltype(tag)::type;
      order.walk(grad, first, last - first, [&](int64_t, int64_t offset) { grad.as<T>()[offset] = T{}; });
    });
  });
}

// Runs an optimizer over its tensors. make_update(TypeTag<A>, tensor number) gives a function
// (vec<A>& param, vec<A> grad, vec<A> (&state)[kStates]) that updates param and state. Empty state lists are absent.
template <int kStates, class MakeUpdate>
void update_tensors(const char* name, const UpdateArguments& arguments, StateLists<kStates>& states,
                    const MakeUpdate& make_update) {
  if (arguments.skips()) {
    if (arguments.zero_grad) zero_gradients(arguments.grads);
    return;
  }
  over_elements(arguments.params, [&](size_t which, int64_t first, int64_t last) {
    dispatch_floating(arguments.params[which].dtype, name, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (arguments.master_params.empty())
        update_tensor<kStates, T, T>(arguments, states, which, first, last, make_update(TypeTag<acc_t<T>>{}, which));
      else if constexpr (sizeof(T) == 2)
        update_tensor<kStates, T, float>(arguments, states, which, first, last, make_update(TypeTag<float>{}, which));
      else
        throw std::invalid_argument(std::string(name) + ": master_params go with float16 and bfloat16 parameters");
    });
  });
}

}  // namespace bigkern
