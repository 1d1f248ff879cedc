// Normalization of rows: what the kernels of layer_norm, rms_norm and add_layer_norm have in common.
//
// Bound by memory: forward reads a row and writes one (add_layer_norm reads two and may write two), backward reads two
// and writes one. A forward row is read once and kept in shared memory between its statistics and its output; one too
// long for that is read again out of the L2 cache. See norm_backward.cuh for the gradients.
//
// A source defines CENTERED (the mean is taken away: layer_norm) and ADDITION (rows are residual + dropout(input)).
#pragma once

#include <floats.cuh>
#include <philox.cuh>
#include <rows.cuh>

#ifndef SCALAR
#define SCALAR float
#endif

constexpr bool kCentered = CENTERED;
constexpr bool kAddition = ADDITION;
constexpr int kWidth = kWidest<SCALAR>;

// ---- parameters ----------------------------------------------------------------------------------------------------

template <int width, class T>
DEVICE void load_parameter(float (&values)[width], const T* pointer) {
  constexpr int together = min_of(width, kWidest<T>);
  if (reinterpret_cast<uint64>(pointer) % (together * sizeof(T)) == 0) {
#pragma unroll
    for (int part = 0; part < width / together; ++part) {
      const Vector<T, together> loaded = load_vector<together>(pointer + part * together);
#pragma unroll
      for (int i = 0; i < together; ++i) values[part * together + i] = to_float(loaded.values[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) values[i] = to_float(pointer[i]);
  }
}

// weight or bias [columns], of SCALAR or float; nothing at all stands for `otherwise`.
struct Parameter {
  const void* values;
  bool is_float;
  float otherwise;

  template <int width>
  DEVICE void load(float (&loaded)[width], int64 column) const {
    if (values == nullptr) {
#pragma unroll
      for (int i = 0; i < width; ++i) loaded[i] = otherwise;
    } else if (is_float) {
      load_parameter(loaded, static_cast<const float*>(values) + column);
    } else {
      load_parameter(loaded, static_cast<const SCALAR*>(values) + column);
    }
  }
};

// ---- dropout -------------------------------------------------------------------------------------------------------

// What elements of input are multiplied by: 0, or 1 / (1 - dropout_p).
struct Dropout {
  const int64* rng_state;
  uint32 threshold;
  float keep_scale;

  template <int width>
  DEVICE void factors(float (&values)[width], int64 row, int column) const {
    uint64 kept = ~uint64(0);
    if (rng_state != nullptr) {
      const uint64 seed = uint64(rng_state[0]);
      const uint32 offset = uint32(uint64(rng_state[1]));
      const int shift = column % 4;
      kept = 0;
#pragma unroll
      for (int quad = 0; quad < width / 4 + 1; ++quad)
        if (quad * 4 < shift + width)
          kept |= uint64(words_at_least(threshold, uint32(row), uint32(column / 4 + quad), uint32(uint64(row) >> 32),
                                        offset, uint32(seed), uint32(seed >> 32)))
                  << quad * 4;
      kept >>= shift;
    }
#pragma unroll
    for (int i = 0; i < width; ++i) values[i] = rng_state == nullptr ? 1.0f : kept >> i & 1 ? keep_scale : 0.0f;
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

struct Pair {
  float first, second;
};

DEVICE Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }

DEVICE Pair exchange(Pair pair, int distance) {
  return {exchange(pair.first, distance), exchange(pair.second, distance)};
}

// A row where it lies, visited as a KeptRow is.
struct RowInPlace {
  const SCALAR* row;
  int64 stride;
  Cut<kWidth> cut;

  template <class Visit>
  DEVICE void visit(const Team& team, Visit visit) const {
    visit_row(row, stride, cut, team, visit);
  }
};

// What a team needs to know of its row; `output` null: there is none, and the team only takes part in reductions.
struct Normalization {
  Team team;
  float columns, eps;
  Parameter weight, bias;
  SCALAR* output;
  float *mean, *rstd;

  template <class Row>
  DEVICE void operator()(const Row& row, Pair* scratch) const {
    float center = 0, rest = 0;
    Pair moments = {0, 0};
    if constexpr (kCentered) {
      row.visit(team, [&](int64, const auto& x) {
        for (auto value : x.values) moments.first += to_float(value);
      });
      center = team_reduce(moments, Sum(), team.size, scratch).first / columns;
      moments.first = 0;
    }
    row.visit(team, [&](int64, const auto& x) {
      for (auto value : x.values) {
        const float d = to_float(value) - center;
        moments = {moments.first + d, fmaf(d, d, moments.second)};
      }
    });
    moments = team_reduce(moments, Sum(), team.size, scratch);
    float variance = moments.second / columns;
    if constexpr (kCentered) {
      rest = moments.first / columns;  // what rounding left of a large mean
      variance -= rest * rest;
      if (variance < 0) variance = 0;
    }
    if (output == nullptr) return;
    const float scale = 1.0f / sqrtf(variance + eps);
    row.visit(team, [&](int64 column, const auto& x) {
      constexpr int width = sizeof(x) / sizeof(SCALAR);
      float weights[width], biases[width];
      weight.load(weights, column);
      bias.load(biases, column);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float normalized = ((to_float(x.values[i]) - center) - rest) * scale;
        weights[i] = fmaf(normalized, weights[i], biases[i]);
      }
      store_floats(output + column, weights);
    });
    if (team.rank != 0) return;
    if (mean != nullptr) *mean = center + rest;
    *rstd = scale;
  }
};

// residual + dropout(input), rounded as it is stored, to `kept` (indexed as the row is) and `sum`, where they are.
struct Addition {
  const SCALAR *input, *residual;
  int64 input_stride, residual_stride, row;
  Dropout dropout;
  SCALAR *kept, *sum;

  template <int width>
  DEVICE void add(int column, const Vector<SCALAR, width>& x, const Vector<SCALAR, width>& y) const {
    float factors[width];
    dropout.factors(factors, row, column);
    Vector<SCALAR, width> total;
#pragma unroll
    for (int i = 0; i < width; ++i)
      total.values[i] = from_float<SCALAR>(fmaf(to_float(x.values[i]), factors[i], to_float(y.values[i])));
    if (kept != nullptr) store_vector(kept + column, total);
    if (sum != nullptr) store_vector(sum + column, total);
  }

  DEVICE void operator()(const Cut<kWidth>& cut, const Team& team) const {
    constexpr int together = 2;
    for (int first = team.rank; first < cut.vectors; first += together * team.size) {
      Vector<SCALAR, kWidth> x[together], y[together];
#pragma unroll
      for (int k = 0; k < together; ++k) {
        if (first + k * team.size >= cut.vectors) break;
        x[k] = load_vector<kWidth>(input + cut.vector(first + k * team.size));
        y[k] = load_vector<kWidth>(residual + cut.vector(first + k * team.size));
      }
#pragma unroll
      for (int k = 0; k < together; ++k)
        if (first + k * team.size < cut.vectors) add(cut.vector(first + k * team.size), x[k], y[k]);
    }
    for (int s = team.rank; s < cut.singles(); s += team.size) {
      const int column = cut.single(s);
      add(column, Vector<SCALAR, 1>{input[column * input_stride]},
          Vector<SCALAR, 1>{residual[column * residual_stride]});
    }
  }
};

// One team per row. `kept`: rows fit in shared memory. `sum` (contiguous as output, and maybe the same) must be there
// where an addition is not kept. `wide`: rows of all matrices begin equally far from addresses of 16 bytes.
KERNEL norm_forward_kernel(const SCALAR* input, const SCALAR* residual, const int64* rng_state, const void* weight,
                           const void* bias, SCALAR* output, SCALAR* sum, float* mean, float* rstd, int64 rows,
                           int64 columns, int64 input_row_stride, int64 input_column_stride, int64 residual_row_stride,
                           int64 residual_column_stride, int64 weight_is_float, int64 bias_is_float,
                           int64 keep_threshold, float keep_scale, float eps, int64 wide, int64 kept, int64 team_size,
                           int64 slot_bytes) {
  DYNAMIC_SHARED(slots);
  __shared__ Pair scratch[kWarp];
  const Team team = team_of(team_size);
  const int64 row = int64(blockIdx.x) * (blockDim.x / team.size) + team.index;
  const bool present = row < rows;
  const int64 count = present ? columns : 0, start = present ? row * columns : 0;
  const SCALAR* source = input + (present ? row * input_row_stride : 0);
  const Normalization normalize = {team,
                                   float(columns),
                                   eps,
                                   {weight, bool(weight_is_float), 1.0f},
                                   {bias, bool(bias_is_float), 0.0f},
                                   present ? output + start : nullptr,
                                   mean == nullptr ? nullptr : mean + row,
                                   rstd + row};
  SCALAR* slot = reinterpret_cast<SCALAR*>(slots + team.index * slot_bytes);
  if constexpr (kAddition) {
    const KeptRow<SCALAR> in_slot(slot, source, count, wide);
    const Addition add = {source,
                          residual + (present ? row * residual_row_stride : 0),
                          input_column_stride,
                          residual_column_stride,
                          row,
                          {rng_state, uint32(keep_threshold), keep_scale},
                          kept ? in_slot.slot : nullptr,
                          sum == nullptr ? nullptr : sum + start};
    add(in_slot.cut, team);
    // Each thread reads back what it has written itself.
    if (kept)
      normalize(in_slot, scratch);
    else
      normalize(RowInPlace{sum + start, 1, in_slot.cut}, scratch);
  } else if (kept) {
    const KeptRow<SCALAR> in_slot(slot, source, input_column_stride, count, wide, team);
    in_slot.wait();
    normalize(in_slot, scratch);
  } else {
    normalize(RowInPlace{source, input_column_stride, cut_row(source, count, wide)}, scratch);
  }
}
