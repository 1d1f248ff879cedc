// int8 quantization of a tensor [outer, groups, inner] with one scale per group, and the way back.
//
// Bound by memory: quantizing moves sizeof(SCALAR) + 1 bytes an element, dequantizing 1 + sizeof(SCALAR). A group that
// fits in shared memory is read once (quantize_rows_kernel). A larger one, or one whose parts lie far apart, is read
// twice, the second time backwards, so that what the L2 cache still holds is not fetched again. 16-byte accesses of
// SCALAR meet 4- or 8-byte ones of int8, neighbouring lanes at neighbouring addresses on both sides; about 12
// instructions an element stay under the 26 that an H100 issues in the time in which 3 bytes pass.
#include <rows.cuh>

#ifndef SCALAR
#define SCALAR float
#endif

constexpr int kWidth = kWidest<SCALAR>;
constexpr int kColumnThreads = 256;
constexpr float kSmallestScale = 1.17549435e-38f;  // a subnormal scale would lose its digits

// ---- numbers -------------------------------------------------------------------------------------------------------

// lo <= 0 <= hi; poison is NaN as soon as one value is NaN or infinite.
struct Range {
  float lo, hi, poison;
};

DEVICE Range exchange(Range range, int distance) {
  return {exchange(range.lo, distance), exchange(range.hi, distance), exchange(range.poison, distance)};
}

struct Union {
  DEVICE Range operator()(Range a, Range b) const {
    return {fminf(a.lo, b.lo), fmaxf(a.hi, b.hi), a.poison + b.poison};
  }
};

template <int width>
DEVICE void widen(Range& range, const Vector<SCALAR, width>& x) {
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const float value = to_float(x.values[i]);
    range = {fminf(range.lo, value), fmaxf(range.hi, value), fmaf(value, 0.0f, range.poison)};
  }
}

struct Quantizer {
  float scale, inverse, lowest, highest;
  int zero_point;
};

DEVICE Quantizer quantizer_from(float scale, int zero_point, bool symmetric) {
  const bool finite = scale == scale;
  const float lowest = float((symmetric ? -127 : -128) - zero_point), highest = float(127 - zero_point);
  // Nothing but 0 lies between the bounds of a group without a finite scale.
  return {scale, 1.0f / scale, finite ? lowest : 0.0f, finite ? highest : 0.0f, zero_point};
}

DEVICE Quantizer quantizer_of(Range range, bool symmetric) {
  const float lo = range.lo + range.poison, hi = range.hi + range.poison;
  const float width = symmetric ? fmaxf(-lo, hi) / 127.0f : (hi * 0.5f - lo * 0.5f) / 127.5f;  // hi - lo may overflow
  const float scale = width == 0 ? 1.0f : width < kSmallestScale ? kSmallestScale : width;
  int zero_point = 0;
  if (!symmetric && hi > lo) zero_point = int(fminf(fmaxf(rintf(-128.0f - lo / scale), -128.0f), 127.0f));
  return quantizer_from(scale, zero_point, symmetric);
}

DEVICE int8 quantized(float x, const Quantizer& q) {
  float quotient = x * q.inverse;
  quotient = fmaf(fmaf(-quotient, q.scale, x), q.inverse, quotient);  // x / scale, without the cost of a division
  quotient = fminf(fmaxf(quotient, q.lowest), q.highest);
  // At 1.5 * 2^23 the spacing of fp32 is 1: the sum is rounded to half-even, and its low byte is the integer.
  return int8(__float_as_int(quotient + 12582912.0f) + q.zero_point);
}

template <int width>
DEVICE Vector<int8, width> quantized(const Vector<SCALAR, width>& x, const Quantizer& quantizer) {
  Vector<int8, width> q;
#pragma unroll
  for (int i = 0; i < width; ++i) q.values[i] = quantized(to_float(x.values[i]), quantizer);
  return q;
}

DEVICE SCALAR dequantized(int8 q, float scale, int zero_point) {
  return from_float<SCALAR>(float(q - zero_point) * scale);
}

template <int width>
DEVICE Vector<SCALAR, width> dequantized(const Vector<int8, width>& q, float scale, int zero_point) {
  Vector<SCALAR, width> x;
#pragma unroll
  for (int i = 0; i < width; ++i) x.values[i] = dequantized(q.values[i], scale, zero_point);
  return x;
}

// ---- groups that fit in shared memory ------------------------------------------------------------------------------

// One team per group: rows of `inner` elements. `wide`: 16-byte accesses of input match aligned ones of qinput.
KERNEL quantize_rows_kernel(const SCALAR* input, int8* qinput, float* scale, int* zero_point, int64 groups, int64 inner,
                            int64 input_group_stride, int64 input_inner_stride, int64 qinput_group_stride,
                            int64 qinput_inner_stride, int64 symmetric, int64 wide, int64 team_size, int64 slot_bytes) {
  DYNAMIC_SHARED(slots);
  __shared__ Range scratch[kWarp];
  const Team team = team_of(team_size);
  const int64 group = int64(blockIdx.x) * (blockDim.x / team.size) + team.index;
  const int64 count = group < groups ? inner : 0;
  const SCALAR* row = input + (count ? group * input_group_stride : 0);
  SCALAR* slot = reinterpret_cast<SCALAR*>(slots + team.index * slot_bytes);
  const KeptRow<SCALAR> kept(slot, row, input_inner_stride, count, wide, team);

  Range range = {0, 0, 0};
  kept.wait();
  kept.visit(team, [&](int64, auto x) { widen(range, x); });
  range = team_reduce(range, Union(), team.size, scratch);
  const Quantizer quantizer = quantizer_of(range, symmetric);

  if (group >= groups) return;
  int8* result = qinput + group * qinput_group_stride;
  kept.visit(team, [&](int64 i, auto x) { store_vector(result + i * qinput_inner_stride, quantized(x, quantizer)); });
  if (team.rank == 0) {
    scale[group] = quantizer.scale;
    if (!symmetric) zero_point[group] = quantizer.zero_point;
  }
}

// ---- groups of any size, along inner -------------------------------------------------------------------------------

// The elements that one team handles at once: at most `piece` of those of one group that lie side by side.
struct Piece {
  int64 outer, inner, count;
};

DEVICE Piece piece_at(int64 index, int64 inner, int64 piece) {
  const int64 pieces = ceil_div(inner, piece);
  const int64 outer = divide(index, pieces);
  const int64 first = (index - outer * pieces) * piece;
  return {outer, first, min_of(piece, inner - first)};
}

// ranges [groups, chunks]: block (group, chunk) takes every chunks-th piece of its group for each of its teams.
KERNEL group_range_kernel(const SCALAR* input, Range* ranges, int64 outer, int64 inner, int64 piece, int64 chunks,
                          int64 outer_stride, int64 group_stride, int64 inner_stride, int64 wide, int64 team_size) {
  __shared__ Range scratch[kWarp];
  const Team team = team_of(team_size);
  const int64 group = divide(blockIdx.x, chunks), chunk = blockIdx.x - group * chunks;
  const int64 teams = blockDim.x / team.size, pieces = outer * ceil_div(inner, piece);
  Range range = {0, 0, 0};
  for (int64 index = chunk * teams + team.index; index < pieces; index += chunks * teams) {
    const Piece at = piece_at(index, inner, piece);
    const SCALAR* row = input + at.outer * outer_stride + group * group_stride + at.inner * inner_stride;
    visit_row(row, inner_stride, cut_row(row, at.count, wide), team, [&](int64, auto x) { widen(range, x); });
  }
  range = team_reduce(range, Union(), blockDim.x, scratch);
  if (threadIdx.x == 0) ranges[blockIdx.x] = range;
}

// scale and zero_point from ranges [groups, chunks]; one warp per group.
KERNEL group_scale_kernel(const Range* ranges, float* scale, int* zero_point, int64 groups, int64 chunks,
                          int64 symmetric) {
  const Team team = team_of(kWarp);
  const int64 group = int64(blockIdx.x) * (blockDim.x / kWarp) + team.index;
  Range range = {0, 0, 0};
  if (group < groups)
    for (int64 chunk = team.rank; chunk < chunks; chunk += kWarp)
      range = Union()(range, ranges[group * chunks + chunk]);
  range = team_reduce<Range>(range, Union(), kWarp, nullptr);
  if (group >= groups || team.rank != 0) return;
  const Quantizer quantizer = quantizer_of(range, symmetric);
  scale[group] = quantizer.scale;
  if (!symmetric) zero_point[group] = quantizer.zero_point;
}

// One team per piece of the whole tensor, the last ones first.
KERNEL quantize_kernel(const SCALAR* input, int8* qinput, const float* scale, const int* zero_point, int64 outer,
                       int64 groups, int64 inner, int64 piece, int64 input_outer_stride, int64 input_group_stride,
                       int64 input_inner_stride, int64 qinput_outer_stride, int64 qinput_group_stride,
                       int64 qinput_inner_stride, int64 symmetric, int64 wide, int64 team_size) {
  const Team team = team_of(team_size);
  const int64 block = gridDim.x - 1 - blockIdx.x, index = block * (blockDim.x / team.size) + team.index;
  if (index >= outer * groups * ceil_div(inner, piece)) return;
  const Piece at = piece_at(index, inner, piece);
  const int64 o = divide(at.outer, groups), group = at.outer - o * groups;
  const Quantizer quantizer = quantizer_from(scale[group], symmetric ? 0 : zero_point[group], symmetric);
  const SCALAR* row = input + o * input_outer_stride + group * input_group_stride + at.inner * input_inner_stride;
  int8* result = qinput + o * qinput_outer_stride + group * qinput_group_stride + at.inner * qinput_inner_stride;
  visit_row(row, input_inner_stride, cut_row(row, at.count, wide), team,
            [&](int64 i, auto x) { store_vector(result + i * qinput_inner_stride, quantized(x, quantizer)); });
}

// scale and zero_point (may be null) have a stride: one number may stand for all groups.
KERNEL dequantize_kernel(const int8* qinput, const float* scale, const int* zero_point, SCALAR* output, int64 outer,
                         int64 groups, int64 inner, int64 piece, int64 qinput_outer_stride, int64 qinput_group_stride,
                         int64 qinput_inner_stride, int64 output_outer_stride, int64 output_group_stride,
                         int64 output_inner_stride, int64 scale_stride, int64 zero_point_stride, int64 wide,
                         int64 team_size) {
  const Team team = team_of(team_size);
  const int64 index = int64(blockIdx.x) * (blockDim.x / team.size) + team.index;
  if (index >= outer * groups * ceil_div(inner, piece)) return;
  const Piece at = piece_at(index, inner, piece);
  const int64 o = divide(at.outer, groups), group = at.outer - o * groups;
  const float group_scale = scale[group * scale_stride];
  const int zero = zero_point ? zero_point[group * zero_point_stride] : 0;
  const int8* row = qinput + o * qinput_outer_stride + group * qinput_group_stride + at.inner * qinput_inner_stride;
  SCALAR* result = output + o * output_outer_stride + group * output_group_stride + at.inner * output_inner_stride;
  const Cut<kWidth> cut = cut_row(result, at.count, wide);  // the wider side says where the vectors are
  visit_row(row, qinput_inner_stride, cut, team, [&](int64 i, auto q) {
    store_vector(result + i * output_inner_stride, dequantized(q, group_scale, zero));
  });
}

// ---- groups that lie side by side ----------------------------------------------------------------------------------

struct Strides {
  int64 outer, group, inner;
};

// A block's tile of columns, one per group: each of its `lanes` threads takes `width` neighbours, and every lanes-th
// thread the same ones. The tile's rows, outer * inner, are dealt to chunks * (threads / lanes) of them in turn.
template <int width>
struct ColumnTile {
  int64 walker, walkers, group, groups, outer, inner;

  DEVICE ColumnTile(int64 outer, int64 groups, int64 inner, int64 chunks, int64 lanes)
      : groups(groups), outer(outer), inner(inner) {
    const int64 tile = divide(blockIdx.x, chunks), chunk = blockIdx.x - tile * chunks, each = blockDim.x / lanes;
    walker = chunk * each + threadIdx.x / lanes;
    walkers = chunks * each;
    group = (tile * lanes + threadIdx.x % lanes) * width;
  }

  DEVICE int64 offset(const Strides& strides, int64 row) const {
    const int64 o = outer == 1 ? 0 : divide(row, inner);
    return o * strides.outer + group * strides.group + (row - o * inner) * strides.inner;
  }

  // Calls use(row, the `width` elements of source in it) for this thread's rows.
  template <class T, class Use>
  DEVICE void visit(const T* source, const Strides& strides, bool backwards, Use use) const {
    if (group >= groups) return;
    const int64 rows = outer * inner;
    for (int64 first = walker; first < rows; first += kInFlight * walkers) {
      int64 row[kInFlight];
      Vector<T, width> loaded[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        row[k] = first + k * walkers;
        if (row[k] >= rows) break;
        if (backwards) row[k] = rows - 1 - row[k];
        loaded[k] = load_vector<width>(source + offset(strides, row[k]));
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k)
        if (first + k * walkers < rows) use(row[k], loaded[k]);
    }
  }
};

template <int width>
DEVICE void column_ranges(const ColumnTile<width>& tile, const SCALAR* input, const Strides& strides, Range* ranges,
                          Range* shared, int64 chunks, int64 lanes) {
  Range range[width] = {};
  tile.visit(input, strides, false, [&](int64, const auto& x) {
#pragma unroll
    for (int k = 0; k < width; ++k) widen(range[k], Vector<SCALAR, 1>{x.values[k]});
  });
#pragma unroll
  for (int k = 0; k < width; ++k) shared[threadIdx.x * width + k] = range[k];
  __syncthreads();
  if (threadIdx.x >= lanes || tile.group >= tile.groups) return;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    for (int64 other = threadIdx.x + lanes; other < blockDim.x; other += lanes)
      range[k] = Union()(range[k], shared[other * width + k]);
    ranges[(tile.group + k) * chunks + blockIdx.x % chunks] = range[k];
  }
}

// ranges [groups, chunks]. `wide`: groups lie side by side, their number and every stride allow 16-byte accesses.
KERNEL column_range_kernel(const SCALAR* input, Range* ranges, int64 outer, int64 groups, int64 inner, int64 chunks,
                           int64 outer_stride, int64 group_stride, int64 inner_stride, int64 wide, int64 lanes) {
  __shared__ Range shared[kColumnThreads * kWidth];
  const Strides strides = {outer_stride, group_stride, inner_stride};
  if (wide)
    column_ranges(ColumnTile<kWidth>(outer, groups, inner, chunks, lanes), input, strides, ranges, shared, chunks,
                  lanes);
  else
    column_ranges(ColumnTile<1>(outer, groups, inner, chunks, lanes), input, strides, ranges, shared, chunks, lanes);
}

template <int width>
DEVICE void quantize_columns(const ColumnTile<width>& tile, const SCALAR* input, int8* qinput, const float* scale,
                             const int* zero_point, const Strides& input_strides, const Strides& qinput_strides,
                             bool symmetric) {
  if (tile.group >= tile.groups) return;
  Quantizer quantizer[width];
#pragma unroll
  for (int k = 0; k < width; ++k)
    quantizer[k] = quantizer_from(scale[tile.group + k], symmetric ? 0 : zero_point[tile.group + k], symmetric);
  tile.visit(input, input_strides, true, [&](int64 row, const auto& x) {
    Vector<int8, width> q;
#pragma unroll
    for (int k = 0; k < width; ++k) q.values[k] = quantized(to_float(x.values[k]), quantizer[k]);
    store_vector(qinput + tile.offset(qinput_strides, row), q);
  });
}

KERNEL __launch_bounds__(kColumnThreads, 2)
    quantize_columns_kernel(const SCALAR* input, int8* qinput, const float* scale, const int* zero_point, int64 outer,
                            int64 groups, int64 inner, int64 chunks, int64 input_outer_stride, int64 input_group_stride,
                            int64 input_inner_stride, int64 qinput_outer_stride, int64 qinput_group_stride,
                            int64 qinput_inner_stride, int64 symmetric, int64 wide, int64 lanes) {
  const Strides input_strides = {input_outer_stride, input_group_stride, input_inner_stride};
  const Strides qinput_strides = {qinput_outer_stride, qinput_group_stride, qinput_inner_stride};
  if (wide)
    quantize_columns(ColumnTile<kWidth>(outer, groups, inner, chunks, lanes), input, qinput, scale, zero_point,
                     input_strides, qinput_strides, symmetric);
  else
    quantize_columns(ColumnTile<1>(outer, groups, inner, chunks, lanes), input, qinput, scale, zero_point,
                     input_strides, qinput_strides, symmetric);
}

template <int width>
DEVICE void dequantize_columns(const ColumnTile<width>& tile, const int8* qinput, const float* scale,
                               const int* zero_point, SCALAR* output, const Strides& qinput_strides,
                               const Strides& output_strides, int64 scale_stride, int64 zero_point_stride) {
  if (tile.group >= tile.groups) return;
  float group_scale[width];
  int zero[width];
#pragma unroll
  for (int k = 0; k < width; ++k) {
    group_scale[k] = scale[(tile.group + k) * scale_stride];
    zero[k] = zero_point ? zero_point[(tile.group + k) * zero_point_stride] : 0;
  }
  tile.visit(qinput, qinput_strides, false, [&](int64 row, const auto& q) {
    Vector<SCALAR, width> x;
#pragma unroll
    for (int k = 0; k < width; ++k) x.values[k] = dequantized(q.values[k], group_scale[k], zero[k]);
    store_vector(output + tile.offset(output_strides, row), x);
  });
}

KERNEL __launch_bounds__(kColumnThreads, 2)
    dequantize_columns_kernel(const int8* qinput, const float* scale, const int* zero_point, SCALAR* output,
                              int64 outer, int64 groups, int64 inner, int64 chunks, int64 qinput_outer_stride,
                              int64 qinput_group_stride, int64 qinput_inner_stride, int64 output_outer_stride,
                              int64 output_group_stride, int64 output_inner_stride, int64 scale_stride,
                              int64 zero_point_stride, int64 wide, int64 lanes) {
  const Strides qinput_strides = {qinput_outer_stride, qinput_group_stride, qinput_inner_stride};
  const Strides output_strides = {output_outer_stride, output_group_stride, output_inner_stride};
  if (wide)
    dequantize_columns(ColumnTile<kWidth>(outer, groups, inner, chunks, lanes), qinput, scale, zero_point, output,
                       qinput_strides, output_strides, scale_stride, zero_point_stride);
  else
    dequantize_columns(ColumnTile<1>(outer, groups, inner, chunks, lanes), qinput, scale, zero_point, output,
                       qinput_strides, output_strides, scale_stride, zero_point_stride);
}
