// The backward of batch_norm_act: three sums over each channel, then the gradients.
#pragma once

#include "channels.h"

namespace bigkern::batch_norm {

using namespace channels;

// Sums over a channel of d = x - mean, g = the gradient that passed the activation, and g * d.
struct ChannelSums {
  double d = 0, g = 0, gd = 0;
};

// grad_input = scale * g - offset - slope * (d - rest); offset and slope are 0, and left out, at inference.
template <class A>
struct ChannelGradient {
  A mean, rest, scale, offset, slope;
};

template <class A>
struct BackwardOperands {
  Operand<A> grad_output, input, output;  // output: absent where there is no activation
  bool training;
  Result<A> grad_input, grad_residual;  // absent where not needed
};

// The gradient that passed the activation: `output` is the forward's, or null.
template <class A>
inline vec<A> passed(const A* grad_output, const A* output, int64_t i, int64_t n) {
  vec<A> grad = load_lanes(grad_output + i, n);
  if (output) grad = load_lanes(output + i, n) <= A(0) ? vec<A>{} : grad;
  return grad;
}

template <class A, class At>
void write_gradients(const A* grad_output, const A* values, const A* output, int64_t count, bool training,
                     A* grad_input, A* grad_residual, const At& at) {
  over_vectors<A>(count, [=, &at](int64_t i, int64_t n) {
    vec<A> grad = passed(grad_output, output, i, n);
    if (grad_residual) store_lanes(grad_residual + i, grad, n);
    if (!grad_input) return;
    vec<A> mean, rest, scale, offset, slope;
    at(i, n, mean, rest, scale, offset, slope);
    vec<A> gradient = grad * scale;
    if (training) gradient = (gradient - offset) - ((load_lanes(values + i, n) - mean) - rest) * slope;
    store_lanes(grad_input + i, gradient, n);
  });
}

// ---- planes -------------------------------------------------------------------------------------------------------

template <class A>
void sum_piece(const BackwardOperands<A>& operands, const Pieces& pieces, int64_t c, int64_t piece, A mean,
               ChannelSums& total) {
  A scratch[kPiece], grad_scratch[kPiece], output_scratch[kPiece];
  const A* values = pieces.load(operands.input, c, piece, scratch);
  const A* grads = pieces.load(operands.grad_output, c, piece, grad_scratch);
  const A* output = operands.output ? pieces.load(operands.output, c, piece, output_scratch) : nullptr;
  double sums[3];
  norm::sum_vectors<A>(pieces.size(piece), sums, [&](int64_t i, int64_t n, auto&& add) {
    vec<A> d = load_lanes(values + i, n) - mean, grad = passed(grads, output, i, n);
    add(0, d);
    add(1, grad);
    add(2, grad * d);
  });
  total.d += sums[0], total.g += sums[1], total.gd += sums[2];
}

// The gradients of `count` elements that lie side by side in the results, from `offset` on.
template <class A, class At>
void finish_gradients(const BackwardOperands<A>& operands, const A* grad_output, const A* values, const A* output,
                      int64_t offset, int64_t count, const At& at) {
  A input_scratch[kPiece], residual_scratch[kPiece];
  const Result<A>&grad_input = operands.grad_input, &grad_residual = operands.grad_residual;
  write_gradients(grad_output, values, output, count, operands.training,
                  grad_input ? grad_input.at(offset, input_scratch) : nullptr,
                  grad_residual ? grad_residual.at(offset, residual_scratch) : nullptr, at);
  if (grad_input) grad_input.finish(offset, count, input_scratch);
  if (grad_residual) grad_residual.finish(offset, count, residual_scratch);
}

template <class A>
void write_plane_gradients(const BackwardOperands<A>& operands, int64_t n, int64_t c, const ChannelGradient<A>& scale) {
  A scratch[kPiece], grad_scratch[kPiece], output_scratch[kPiece];
  const Operand<A>& input = operands.input;
  int64_t plane = (n * input.channels + c) * input.positions;
  for (int64_t begin = 0; begin < input.positions; begin += kPiece) {
    int64_t count = std::min(kPiece, input.positions - begin);
    const A* grads = operands.grad_output.in_plane(n, c, begin, count, grad_scratch);
    const A* output = operands.output ? operands.output.in_plane(n, c, begin, count, output_scratch) : nullptr;
    finish_gradients(operands, grads, input.in_plane(n, c, begin, count, scratch), output, plane + begin, count,
                     [&](int64_t, int64_t, vec<A>& mean, vec<A>& rest, vec<A>& factor, vec<A>& offset, vec<A>& slope) {
                       mean = broadcast(scale.mean), rest = broadcast(scale.rest), factor = broadcast(scale.scale);
                       offset = broadcast(scale.offset), slope = broadcast(scale.slope);
                     });
  }
}

// gradient_of(c, sums) keeps the parameters' gradients and gives what the channel's gradient is made of.
template <class A, class GradientOf>
void backward_planes(const BackwardOperands<A>& operands, const A* means, bool needs_sums, bool needs_planes,
                     const GradientOf& gradient_of) {
  const Operand<A>& input = operands.input;
  int64_t channels = input.channels, size = std::max<int64_t>(input.batch * input.positions, 1);
  Pieces pieces(input.batch, input.positions);
  if (channels >= available_threads()) {  // a channel may still be in the cache when it is read again
    parallel_for(channels, kGrain / size + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        ChannelSums total;
        for (int64_t piece = 0; needs_sums && piece < pieces.count; ++piece)
          sum_piece(operands, pieces, c, piece, means[c], total);
        ChannelGradient<A> gradient = gradient_of(c, total);
        for (int64_t n = 0; needs_planes && n < input.batch; ++n) write_plane_gradients(operands, n, c, gradient);
      }
    });
    return;
  }
  std::vector<ChannelSums> sums(static_cast<size_t>(channels * pieces.count));
  if (needs_sums)
    parallel_for(channels * pieces.count, kGrain / kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        sum_piece(operands, pieces, i / pieces.count, i % pieces.count, means[i / pieces.count], sums[i]);
    });
  std::vector<ChannelGradient<A>> gradients(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) {
    ChannelSums total;
    for (int64_t i = c * pieces.count; i < (c + 1) * pieces.count; ++i)
      total.d += sums[i].d, total.g += sums[i].g, total.gd += sums[i].gd;
    gradients[c] = gradient_of(c, total);
  }
  if (needs_planes)
    parallel_for(input.batch * channels, kGrain / std::max<int64_t>(input.positions, 1) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i)
                     write_plane_gradients(operands, i / channels, i % channels, gradients[i % channels]);
                 });
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// Adds the sums of one tile to those of its strip: kStrip of d, then of g, then of g * d.
template <class A>
void sum_tile(const Tile<A>& grads, const Tile<A>& values, const Tile<A>* output, int64_t rows, const A* mean,
              double* sums) {
  vec<A> d_sums[4] = {}, g_sums[4] = {}, gd_sums[4] = {}, means[4];
  for (int k = 0; k < 4; ++k) means[k] = load(mean + k * lanes<A>);
  for (int64_t row = 0; row < rows; ++row)
    for (int k = 0; k < 4; ++k) {
      vec<A> d = values.at(row, k) - means[k], grad = grads.at(row, k);
      if (output) grad = output->at(row, k) <= A(0) ? vec<A>{} : grad;
      d_sums[k] += d;
      g_sums[k] += grad;
      gd_sums[k] += grad * d;
    }
  for (int k = 0; k < 4; ++k)
    for (int lane = 0; lane < lanes<A>; ++lane) {
      int64_t c = k * lanes<A> + lane;
      sums[c] += d_sums[k][lane];
      sums[kStrip<A> + c] += g_sums[k][lane];
      sums[2 * kStrip<A> + c] += gd_sums[k][lane];
    }
}

template <class A, class GradientOf>
void backward_rows(const BackwardOperands<A>& operands, const A* means, bool needs_sums, bool needs_rows,
                   const GradientOf& gradient_of) {
  const Operand<A>& input = operands.input;
  int64_t channels = input.channels, rows = input.batch * input.positions;
  int64_t block_rows = rows_per_block(rows), blocks = (rows + block_rows - 1) / block_rows;
  struct Tag {};
  Lease<Tag> lease(static_cast<size_t>(3 * blocks * channels) * sizeof(double) +
                   static_cast<size_t>(5 * channels) * sizeof(A));
  double* partial = lease.template as<double>();
  A* scales = reinterpret_cast<A*>(partial + 3 * blocks * channels);  // mean, rest, scale, offset, slope
  if (needs_sums)
    over_strips<A>(rows, channels, [&](int64_t block, int64_t begin, int64_t end, int64_t channel) {
      A scratch[kTileRows * kStrip<A>], grad_scratch[kTileRows * kStrip<A>], output_scratch[kTileRows * kStrip<A>];
      double sums[3 * kStrip<A>] = {};
      A mean[kStrip<A>] = {};
      int64_t width = std::min(kStrip<A>, channels - channel);
      std::copy(means + channel, means + channel + width, mean);
      for (int64_t row = begin; row < end; row += kTileRows) {
        int64_t count = std::min(kTileRows, end - row);
        Tile<A> grads(operands.grad_output, row, count, channel, grad_scratch);
        Tile<A> values(operands.input, row, count, channel, scratch);
        if (operands.output) {
          Tile<A> output(operands.output, row, count, channel, output_scratch);
          sum_tile(grads, values, &output, count, mean, sums);
        } else {
          sum_tile<A>(grads, values, nullptr, count, mean, sums);
        }
      }
      for (int k = 0; k < 3; ++k)
        std::copy(sums + k * kStrip<A>, sums + k * kStrip<A> + width, partial + (block * 3 + k) * channels + channel);
    });
  for (int64_t c = 0; c < channels; ++c) {
    ChannelSums total;
    for (int64_t block = 0; needs_sums && block < blocks; ++block) {
      const double* sums = partial + block * 3 * channels + c;
      total.d += sums[0], total.g += sums[channels], total.gd += sums[2 * channels];
    }
    ChannelGradient<A> gradient = gradient_of(c, total);
    const A values[] = {gradient.mean, gradient.rest, gradient.scale, gradient.offset, gradient.slope};
    for (int k = 0; k < 5; ++k) scales[k * channels + c] = values[k];
  }
  if (!needs_rows) return;
  parallel_for(rows, kGrain / std::max<int64_t>(channels, 1) + 1, [&](int64_t begin, int64_t end) {
    A scratch[kPiece], grad_scratch[kPiece], output_scratch[kPiece];
    for (int64_t row = begin; row < end; ++row)
      for (int64_t c = 0; c < channels; c += kPiece) {
        int64_t count = std::min(kPiece, channels - c), at = row * channels + c;
        const A* output = operands.output ? operands.output.in_row(row, c, count, output_scratch) : nullptr;
        const A* grads = operands.grad_output.in_row(row, c, count, grad_scratch);
        finish_gradients(
            operands, grads, input.in_row(row, c, count, scratch), output, at, count,
            [&, c](int64_t i, int64_t n, vec<A>& mean, vec<A>& rest, vec<A>& factor, vec<A>& offset, vec<A>& slope) {
              const A* own = scales + c + i;
              mean = load_lanes(own, n), rest = load_lanes(own + channels, n);
              factor = load_lanes(own + 2 * channels, n), offset = load_lanes(own + 3 * channels, n);
              slope = load_lanes(own + 4 * channels, n);
            });
      }
  });
}

}  // namespace bigkern::batch_norm
