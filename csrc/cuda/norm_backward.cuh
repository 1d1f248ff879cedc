// Gradients of normalized rows: the kernels that the backwards of layer_norm, rms_norm and add_layer_norm have in
// common.
//
// With d = x - mean (or x), n = d * rstd and g = grad_output * weight, per row:
//     grad_input = rstd * (g - mean of g - n * mean of (g * n)); the middle term only for CENTERED.
// The forward stored a rounded mean; the mean of d says by how much, and is taken away from d again.
//
// Two rows read and one written: rows_kernel copies both to shared memory and keeps the sums over rows that the
// gradients of weight and bias are, one per column, beside them; every thread owns its columns, so none of it needs a
// barrier. At 16 bits that is 12 bytes of shared memory a column. Longer rows are read twice (sums_kernel,
// strips_kernel). Partial sums are added up by reduce_kernel in one order: no atomics, the same bits in every run.
#pragma once

#include <norm.cuh>

constexpr int kStripLanes = 32, kStripWalkers = 8, kStripThreads = kStripLanes * kStripWalkers;

// ---- one row -------------------------------------------------------------------------------------------------------

struct RowSums {
  float offset, grad, product;
};

DEVICE RowSums operator+(RowSums a, RowSums b) { return {a.offset + b.offset, a.grad + b.grad, a.product + b.product}; }

DEVICE RowSums exchange(RowSums sums, int distance) {
  return {exchange(sums.offset, distance), exchange(sums.grad, distance), exchange(sums.product, distance)};
}

// What the elements of a row have in common; `rest` is less than the last digit of mean.
struct RowTerms {
  float mean, rest, rstd, mean_grad, slope;
};

DEVICE RowTerms terms_of(float mean, float rstd, const RowSums& sums, int64 count) {
  const float columns = float(count), rest = kCentered ? sums.offset / columns : 0.0f;
  const float mean_grad = kCentered ? sums.grad / columns : 0.0f;
  return {mean, rest, rstd, mean_grad, (sums.product - rest * sums.grad) * rstd / columns};
}

template <int width>
DEVICE Vector<SCALAR, width> load_at(const SCALAR* row, int64 stride, int column) {
  if constexpr (width == 1)
    return {row[column * stride]};
  else
    return load_vector<width>(row + column);
}

// Matrices [rows, columns]; those that are written are contiguous. May be null: grad_sum (is added to the gradient of
// the row), grad_input, and grad_dropped (that gradient behind dropout).
struct Gradients {
  const SCALAR *grad_output, *input, *grad_sum;
  SCALAR *grad_input, *grad_dropped;
  Parameter weight;
  Dropout dropout;
  int64 columns, grad_row_stride, grad_column_stride, input_row_stride, input_column_stride, sum_row_stride,
      sum_column_stride;

  template <int width>
  DEVICE Vector<SCALAR, width> load_grad(int64 row, int column) const {
    return load_at<width>(grad_output + row * grad_row_stride, grad_column_stride, column);
  }

  template <int width>
  DEVICE Vector<SCALAR, width> load_input(int64 row, int column) const {
    return load_at<width>(input + row * input_row_stride, input_column_stride, column);
  }

  template <int width>
  DEVICE void add_to(RowSums& sums, int column, float mean, const Vector<SCALAR, width>& x,
                     const Vector<SCALAR, width>& grad) const {
    float weights[width];
    weight.load(weights, column);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float d = to_float(x.values[i]) - mean, g = to_float(grad.values[i]) * weights[i];
      sums = {sums.offset + d, sums.grad + g, fmaf(g, d, sums.product)};
    }
  }

  // Writes the gradients at (row, column); `weight_terms` becomes what the gradient of weight is the sum of.
  template <int width>
  DEVICE void write(float (&weight_terms)[width], int64 row, int column, const RowTerms& terms,
                    const Vector<SCALAR, width>& x, const Vector<SCALAR, width>& grad) const {
    float weights[width], gradient[width];
    weight.load(weights, column);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float normalized = ((to_float(x.values[i]) - terms.mean) - terms.rest) * terms.rstd;
      const float g = to_float(grad.values[i]);
      weight_terms[i] = g * normalized;
      gradient[i] = terms.rstd * (g * weights[i] - terms.mean_grad - normalized * terms.slope);
    }
    if (grad_input == nullptr) return;
    if (kAddition && grad_sum != nullptr) {
      const auto added = load_at<width>(grad_sum + row * sum_row_stride, sum_column_stride, column);
#pragma unroll
      for (int i = 0; i < width; ++i) gradient[i] += to_float(added.values[i]);
    }
    store_floats(grad_input + row * columns + column, gradient);
    if (kAddition && grad_dropped != nullptr) {
      float factors[width];
      dropout.factors(factors, row, column);
#pragma unroll
      for (int i = 0; i < width; ++i) gradient[i] *= factors[i];
      store_floats(grad_dropped + row * columns + column, gradient);
    }
  }
};

// ---- rows that fit in shared memory --------------------------------------------------------------------------------

// A sum over rows for each column, in shared memory: `part` columns to an address, so that neighbouring threads are
// neighbours there.
template <int width>
struct ColumnSums {
  static constexpr int part = min_of(width, 4);
  float* sums;
  int accesses;

  DEVICE float* at(int access, int p) const { return sums + (p * accesses + access) * part; }

  DEVICE void add(int access, const float (&values)[width]) const {
#pragma unroll
    for (int p = 0; p < width / part; ++p) {
      Vector<float, part> sum = load_vector<part>(at(access, p));
#pragma unroll
      for (int i = 0; i < part; ++i) sum.values[i] += values[p * part + i];
      store_vector(at(access, p), sum);
    }
  }

  DEVICE float of_column(int column) const { return at(column / width, column % width / part)[column % part]; }
};

// A team's slot: a row of input, one of grad_output (`row_bytes` each, a multiple of 16), then one float a column for
// each gradient that is wanted.
template <int width>
DEVICE void backward_of_rows(const Gradients& task, const float* mean, const float* rstd, float* partial_weight,
                             float* partial_bias, int64 rows, const Team& team, uint8* slots, int64 row_bytes,
                             int64 slot_bytes, RowSums* scratch) {
  using Access = Vector<SCALAR, width>;
  const int columns = int(task.columns), accesses = columns / width, teams = int(blockDim.x) / team.size;
  uint8* const slot = slots + team.index * slot_bytes;
  Access* const inputs = reinterpret_cast<Access*>(slot);
  Access* const grads = reinterpret_cast<Access*>(slot + row_bytes);
  float* const floats = reinterpret_cast<float*>(slot + 2 * row_bytes);
  const ColumnSums<width> weight_sums = {floats, accesses};
  const ColumnSums<width> bias_sums = {floats + (partial_weight == nullptr ? 0 : columns), accesses};
  const int wanted = ((partial_weight != nullptr) + (partial_bias != nullptr)) * columns;
  for (int i = team.rank; i < wanted; i += team.size) floats[i] = 0;
  __syncthreads();

  for (int64 first = int64(blockIdx.x) * teams; first < rows; first += int64(gridDim.x) * teams) {
    const int64 row = first + team.index;
    const int count = row < rows ? accesses : 0;
    for (int a = team.rank; a < count; a += team.size) {
      if constexpr (width == 1) {
        inputs[a] = task.load_input<1>(row, a);
        grads[a] = task.load_grad<1>(row, a);
      } else {
        cp_async_16(inputs + a, task.input + row * task.input_row_stride + a * width);
        cp_async_16(grads + a, task.grad_output + row * task.grad_row_stride + a * width);
      }
    }
    cp_async_commit();
    const float row_mean = kCentered && count ? mean[row] : 0.0f, row_rstd = count ? rstd[row] : 0.0f;
    cp_async_wait<0>();

    RowSums sums = {0, 0, 0};
    for (int a = team.rank; a < count; a += team.size) {
      const Access x = inputs[a], grad = grads[a];
      task.add_to(sums, a * width, row_mean, x, grad);
    }
    sums = team_reduce(sums, Sum(), team.size, scratch);
    const RowTerms terms = terms_of(row_mean, row_rstd, sums, columns);

    for (int a = team.rank; a < count; a += team.size) {
      const Access x = inputs[a], grad = grads[a];
      float weight_terms[width];
      task.write(weight_terms, row, a * width, terms, x, grad);
      if (partial_weight != nullptr) weight_sums.add(a, weight_terms);
      if (partial_bias != nullptr) {
        float bias_terms[width];
        to_floats(grad, bias_terms);
        bias_sums.add(a, bias_terms);
      }
    }
  }

  __syncthreads();
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    float weight_sum = 0, bias_sum = 0;
    for (int other = 0; other < teams; ++other) {
      const int64 apart = (other - team.index) * slot_bytes / int64(sizeof(float));
      if (partial_weight != nullptr)
        weight_sum += ColumnSums<width>{weight_sums.sums + apart, accesses}.of_column(column);
      if (partial_bias != nullptr) bias_sum += ColumnSums<width>{bias_sums.sums + apart, accesses}.of_column(column);
    }
    if (partial_weight != nullptr) partial_weight[int64(blockIdx.x) * columns + column] = weight_sum;
    if (partial_bias != nullptr) partial_bias[int64(blockIdx.x) * columns + column] = bias_sum;
  }
}

// Every block deals its teams every gridDim-th group of rows, and leaves its sums in row blockIdx of the partial
// gradients [blocks, columns] (null where not wanted). `wide`: all rows begin at addresses of 16 bytes, and end there.
KERNEL __launch_bounds__(512, 1)  // without the 1, ptxas saves registers by spilling
    norm_backward_rows_kernel(const SCALAR* grad_output, const SCALAR* input, const void* weight, const float* mean,
                              const float* rstd, const SCALAR* grad_sum, const int64* rng_state, SCALAR* grad_input,
                              SCALAR* grad_dropped, float* partial_weight, float* partial_bias, int64 rows,
                              int64 columns, int64 grad_row_stride, int64 grad_column_stride, int64 input_row_stride,
                              int64 input_column_stride, int64 sum_row_stride, int64 sum_column_stride,
                              int64 weight_is_float, int64 keep_threshold, float keep_scale, int64 wide,
                              int64 team_size, int64 row_bytes, int64 slot_bytes) {
  DYNAMIC_SHARED(slots);
  __shared__ RowSums scratch[kWarp];
  const Gradients task = {grad_output,
                          input,
                          grad_sum,
                          grad_input,
                          grad_dropped,
                          {weight, bool(weight_is_float), 1.0f},
                          {rng_state, uint32(keep_threshold), keep_scale},
                          columns,
                          grad_row_stride,
                          grad_column_stride,
                          input_row_stride,
                          input_column_stride,
                          sum_row_stride,
                          sum_column_stride};
  const Team team = team_of(team_size);
  if (wide)
    backward_of_rows<kWidth>(task, mean, rstd, partial_weight, partial_bias, rows, team, slots, row_bytes, slot_bytes,
                             scratch);
  else
    backward_of_rows<1>(task, mean, rstd, partial_weight, partial_bias, rows, team, slots, row_bytes, slot_bytes,
                        scratch);
}

// ---- longer rows ---------------------------------------------------------------------------------------------------

template <int width>
DEVICE RowSums sums_of_row(const Gradients& task, int64 row, float mean) {
  constexpr int together = 2;
  const int columns = int(task.columns), step = int(blockDim.x) * width;
  RowSums sums = {0, 0, 0};
  for (int first = threadIdx.x * width; first < columns; first += together * step) {
    Vector<SCALAR, width> x[together], grad[together];
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (first + k * step >= columns) break;
      x[k] = task.load_input<width>(row, first + k * step);
      grad[k] = task.load_grad<width>(row, first + k * step);
    }
#pragma unroll
    for (int k = 0; k < together; ++k)
      if (first + k * step < columns) task.add_to(sums, first + k * step, mean, x[k], grad[k]);
  }
  return sums;
}

// terms [rows]; one block per row.
KERNEL norm_backward_sums_kernel(const SCALAR* grad_output, const SCALAR* input, const void* weight, const float* mean,
                                 const float* rstd, RowTerms* terms, int64 columns, int64 grad_row_stride,
                                 int64 grad_column_stride, int64 input_row_stride, int64 input_column_stride,
                                 int64 weight_is_float, int64 wide) {
  __shared__ RowSums scratch[kWarp];
  Gradients task = {};
  task.grad_output = grad_output;
  task.input = input;
  task.weight = {weight, bool(weight_is_float), 1.0f};
  task.columns = columns;
  task.grad_row_stride = grad_row_stride;
  task.grad_column_stride = grad_column_stride;
  task.input_row_stride = input_row_stride;
  task.input_column_stride = input_column_stride;
  const int64 row = blockIdx.x;
  const float row_mean = kCentered ? mean[row] : 0.0f;
  RowSums sums = wide ? sums_of_row<kWidth>(task, row, row_mean) : sums_of_row<1>(task, row, row_mean);
  sums = team_reduce(sums, Sum(), blockDim.x, scratch);
  if (threadIdx.x == 0) terms[row] = terms_of(row_mean, rstd[row], sums, columns);
}

// The sum over a block's walkers of `values`, one for each of the strip's columns, to sums[column], in one order.
template <int width>
DEVICE void combine_walkers(const float (&values)[width], float* shared, float* sums, int column, int columns) {
  __syncthreads();
#pragma unroll
  for (int i = 0; i < width; ++i) shared[i * kStripThreads + threadIdx.x] = values[i];
  __syncthreads();
  if (threadIdx.x >= kStripLanes || column >= columns) return;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    float sum = 0;
    for (int walker = 0; walker < kStripWalkers; ++walker)
      sum += shared[i * kStripThreads + walker * kStripLanes + threadIdx.x];
    sums[column + i] = sum;
  }
}

template <int width>
DEVICE void backward_of_strip(const Gradients& task, const RowTerms* terms, float* partial_weight, float* partial_bias,
                              int64 rows, int64 chunks, float* shared) {
  constexpr int together = 2;
  const int64 tile = divide(blockIdx.x, chunks), chunk = blockIdx.x - tile * chunks, step = chunks * kStripWalkers;
  const int columns = int(task.columns), column = int(tile * kStripLanes + threadIdx.x % kStripLanes) * width;
  float weight_sums[width] = {}, bias_sums[width] = {};
  const int64 first_row = chunk * kStripWalkers + threadIdx.x / kStripLanes;
  for (int64 first = column < columns ? first_row : rows; first < rows; first += together * step) {
    Vector<SCALAR, width> x[together], grad[together];
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (first + k * step >= rows) break;
      x[k] = task.load_input<width>(first + k * step, column);
      grad[k] = task.load_grad<width>(first + k * step, column);
    }
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (first + k * step >= rows) break;
      float weight_terms[width];
      task.write(weight_terms, first + k * step, column, terms[first + k * step], x[k], grad[k]);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        weight_sums[i] += weight_terms[i];
        bias_sums[i] += to_float(grad[k].values[i]);
      }
    }
  }
  const int64 place = chunk * columns;
  if (partial_weight != nullptr) combine_walkers(weight_sums, shared, partial_weight + place, column, columns);
  if (partial_bias != nullptr) combine_walkers(bias_sums, shared, partial_bias + place, column, columns);
}

// A block walks down every chunks-th group of rows in a strip of 32 accesses; partial gradients [chunks, columns].
KERNEL __launch_bounds__(kStripThreads, 2)
    norm_backward_strips_kernel(const SCALAR* grad_output, const SCALAR* input, const void* weight,
                                const RowTerms* terms, const SCALAR* grad_sum, const int64* rng_state,
                                SCALAR* grad_input, SCALAR* grad_dropped, float* partial_weight, float* partial_bias,
                                int64 rows, int64 columns, int64 grad_row_stride, int64 grad_column_stride,
                                int64 input_row_stride, int64 input_column_stride, int64 sum_row_stride,
                                int64 sum_column_stride, int64 weight_is_float, int64 keep_threshold, float keep_scale,
                                int64 wide, int64 chunks) {
  __shared__ float shared[kStripThreads * kWidth];
  const Gradients task = {grad_output,
                          input,
                          grad_sum,
                          grad_input,
                          grad_dropped,
                          {weight, bool(weight_is_float), 1.0f},
                          {rng_state, uint32(keep_threshold), keep_scale},
                          columns,
                          grad_row_stride,
                          grad_column_stride,
                          input_row_stride,
                          input_column_stride,
                          sum_row_stride,
                          sum_column_stride};
  if (wide)
    backward_of_strip<kWidth>(task, terms, partial_weight, partial_bias, rows, chunks, shared);
  else
    backward_of_strip<1>(task, terms, partial_weight, partial_bias, rows, chunks, shared);
}

// ---- sums over blocks ----------------------------------------------------------------------------------------------

DEVICE void store_parameter(void* values, bool is_float, int64 index, float value) {
  if (is_float)
    static_cast<float*>(values)[index] = value;
  else
    static_cast<SCALAR*>(values)[index] = from_float<SCALAR>(value);
}

// grad [columns] from partial [count, columns]: blockIdx.y 0 is weight's and 1 is bias's; each null if not wanted.
KERNEL norm_reduce_kernel(const float* partial_weight, const float* partial_bias, void* grad_weight, void* grad_bias,
                          int64 count, int64 columns, int64 weight_is_float, int64 bias_is_float) {
  __shared__ float shared[kStripThreads];
  const float* partial = blockIdx.y == 0 ? partial_weight : partial_bias;
  if (partial == nullptr) return;
  const int64 column = int64(blockIdx.x) * kStripLanes + threadIdx.x % kStripLanes;
  float sum = 0;
  if (column < columns)
    for (int64 row = threadIdx.x / kStripLanes; row < count; row += kStripWalkers)
      sum += partial[row * columns + column];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kStripLanes || column >= columns) return;
  sum = 0;
  for (int walker = 0; walker < kStripWalkers; ++walker) sum += shared[walker * kStripLanes + threadIdx.x];
  if (blockIdx.y == 0)
    store_parameter(grad_weight, weight_is_float, column, sum);
  else
    store_parameter(grad_bias, bias_is_float, column, sum);
}
