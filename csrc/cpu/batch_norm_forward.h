// The forward of batch_norm_act: the moments of each channel, then the output.
#pragma once

#include "channels.h"
#include "norm_forward.h"

namespace bigkern::batch_norm {

using namespace channels;
using norm::Moments;

// What one channel is normalized with. The mean in two parts: next to a large mean, one would round away the digits.
template <class A>
struct ChannelScale {
  A mean, mean_rest, scale, shift;
};

// Each of them for all channels, side by side.
template <class A>
struct ChannelScales {
  struct Tag {};
  Lease<Tag> lease;
  A *mean, *mean_rest, *scale, *shift;

  explicit ChannelScales(int64_t channels)
      : lease(static_cast<size_t>(4 * channels) * sizeof(A)),
        mean(lease.template as<A>()),
        mean_rest(mean + channels),
        scale(mean_rest + channels),
        shift(scale + channels) {}
};

template <class A>
struct ForwardChannels {
  const A *weight, *bias;
  double eps;
  A *mean, *var;

  ChannelScale<A> keep(int64_t c, double exact_mean, double exact_var) const {
    A rounded = static_cast<A>(exact_mean);
    mean[c] = rounded;
    var[c] = static_cast<A>(exact_var);
    return {rounded, static_cast<A>(exact_mean - static_cast<double>(rounded)),
            static_cast<A>(static_cast<double>(weight[c]) / std::sqrt(exact_var + eps)), bias[c]};
  }
  ChannelScale<A> keep(int64_t c, const Moments& moments) const {
    double count = moments.count;
    return keep(c, count > 0 ? moments.mean : 0 / count, moments.m2 / count);
  }
};

// output = act(normalized + residual); `at(i, n)` gives the scale of vector i.
template <class A, class At>
void write(const A* values, const A* residual, int64_t count, bool relu, A* output, const At& at) {
  over_vectors<A>(count, [=, &at](int64_t i, int64_t n) {
    vec<A> mean, mean_rest, scale, shift;
    at(i, n, mean, mean_rest, scale, shift);
    vec<A> y = ((load_lanes(values + i, n) - mean) - mean_rest) * scale + shift;
    if (residual) y += load_lanes(residual + i, n);
    if (relu) y = y < A(0) ? vec<A>{} : y;  // a maximum would turn NaN into 0
    store_lanes(output + i, y, n);
  });
}

// ---- planes -------------------------------------------------------------------------------------------------------

template <class A>
void write_plane(const Operand<A>& input, const Operand<A>& residual, int64_t n, int64_t c, bool relu,
                 const ChannelScale<A>& scale, const Result<A>& output) {
  A scratch[kPiece], residual_scratch[kPiece], target[kPiece];
  for (int64_t begin = 0; begin < input.positions; begin += kPiece) {
    int64_t count = std::min(kPiece, input.positions - begin);
    const A* values = input.in_plane(n, c, begin, count, scratch);
    const A* added = residual ? residual.in_plane(n, c, begin, count, residual_scratch) : nullptr;
    int64_t offset = (n * input.channels + c) * input.positions + begin;
    write(values, added, count, relu, output.at(offset, target),
          [&](int64_t, int64_t, vec<A>& mean, vec<A>& mean_rest, vec<A>& factor, vec<A>& shift) {
            mean = broadcast(scale.mean), mean_rest = broadcast(scale.mean_rest);
            factor = broadcast(scale.scale), shift = broadcast(scale.shift);
          });
    output.finish(offset, count, target);
  }
}

template <class A>
void forward_planes(const Operand<A>& input, const Operand<A>& residual, bool training,
                    const ForwardChannels<A>& per_channel, const ChannelScales<A>& scales, bool relu,
                    const Result<A>& output) {
  int64_t channels = input.channels, planes = input.batch * channels;
  Pieces pieces(input.batch, input.positions);
  auto moments_of = [&](int64_t c, int64_t piece) {
    A scratch[kPiece];
    return norm::moments_of<true>(pieces.load(input, c, piece, scratch), pieces.size(piece));
  };
  auto total_of = [&](int64_t c, auto&& piece_moments) {
    Moments total;
    for (int64_t piece = 0; piece < pieces.count; ++piece) total.include(piece_moments(c, piece));
    return per_channel.keep(c, total);
  };
  int64_t per_channel_grain = kGrain / std::max<int64_t>(input.batch * input.positions, 1) + 1;
  if (training && channels >= available_threads()) {  // a channel may still be in the cache when it is read again
    parallel_for(channels, per_channel_grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        ChannelScale<A> scale = total_of(c, moments_of);
        for (int64_t n = 0; n < input.batch; ++n) write_plane(input, residual, n, c, relu, scale, output);
      }
    });
    return;
  }
  if (training) {
    std::vector<Moments> moments(static_cast<size_t>(channels * pieces.count));
    parallel_for(channels * pieces.count, kGrain / kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) moments[i] = moments_of(i / pieces.count, i % pieces.count);
    });
    for (int64_t c = 0; c < channels; ++c) {
      ChannelScale<A> scale =
          total_of(c, [&](int64_t channel, int64_t piece) { return moments[channel * pieces.count + piece]; });
      scales.mean[c] = scale.mean, scales.mean_rest[c] = scale.mean_rest;
      scales.scale[c] = scale.scale, scales.shift[c] = scale.shift;
    }
  }
  parallel_for(planes, kGrain / std::max<int64_t>(input.positions, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t c = i % channels;
      ChannelScale<A> scale{scales.mean[c], scales.mean_rest[c], scales.scale[c], scales.shift[c]};
      write_plane(input, residual, i / channels, c, relu, scale, output);
    }
  });
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// Adds the moments of one tile to those of its strip, whose `before` rows were counted already.
template <class A>
void include_tile(const Tile<A>& tile, int64_t rows, double before, double* mean, double* m2) {
  vec<A> first[4], sums[4] = {}, squares[4] = {};
  for (int k = 0; k < 4; ++k) first[k] = tile.at(0, k);
  for (int64_t row = 1; row < rows; ++row)
    for (int k = 0; k < 4; ++k) sums[k] += tile.at(row, k) - first[k];
  vec<A> centers[4];
  for (int k = 0; k < 4; ++k) centers[k] = first[k] + sums[k] / static_cast<A>(rows), sums[k] = vec<A>{};
  for (int64_t row = 0; row < rows; ++row)
    for (int k = 0; k < 4; ++k) {
      vec<A> d = tile.at(row, k) - centers[k];
      sums[k] += d;
      squares[k] += d * d;
    }
  double count = static_cast<double>(rows), total = before + count;
  double share = count / total, weight = before * share, inverse_count = 1 / count;
  for (int k = 0; k < 4; ++k)
    for (int lane = 0; lane < lanes<A>; ++lane) {
      int64_t c = k * lanes<A> + lane;
      double sum = sums[k][lane], correction = sum * inverse_count;
      double shift = before > 0 ? static_cast<double>(centers[k][lane]) + correction - mean[c] : 0;
      double own = squares[k][lane] - sum * correction;
      mean[c] = before > 0 ? mean[c] + shift * share : static_cast<double>(centers[k][lane]) + correction;
      m2[c] += (own < 0 ? 0 : own) + shift * shift * weight;
    }
}

template <class A>
void forward_rows(const Operand<A>& input, const Operand<A>& residual, bool training,
                  const ForwardChannels<A>& per_channel, const ChannelScales<A>& scales, bool relu,
                  const Result<A>& output) {
  int64_t channels = input.channels, rows = input.batch * input.positions;
  int64_t block_rows = rows_per_block(rows), blocks = (rows + block_rows - 1) / block_rows;
  if (training) {
    struct Tag {};
    Lease<Tag> partial(static_cast<size_t>(2 * blocks * channels) * sizeof(double));
    double *means = partial.template as<double>(), *m2s = means + blocks * channels;
    over_strips<A>(rows, channels, [&](int64_t block, int64_t begin, int64_t end, int64_t channel) {
      A scratch[kTileRows * kStrip<A>];
      double mean[kStrip<A>] = {}, m2[kStrip<A>] = {};
      for (int64_t row = begin; row < end; row += kTileRows) {
        int64_t count = std::min(kTileRows, end - row);
        include_tile(Tile<A>(input, row, count, channel, scratch), count, static_cast<double>(row - begin), mean, m2);
      }
      int64_t count = std::min(kStrip<A>, channels - channel);
      std::copy(mean, mean + count, means + block * channels + channel);
      std::copy(m2, m2 + count, m2s + block * channels + channel);
    });
    for (int64_t c = 0; c < channels; ++c) {
      Moments total;
      for (int64_t block = 0; block < blocks; ++block) {
        double count = static_cast<double>(std::min(block_rows, rows - block * block_rows));
        total.include({count, means[block * channels + c], m2s[block * channels + c]});
      }
      ChannelScale<A> scale = per_channel.keep(c, total);
      scales.mean[c] = scale.mean, scales.mean_rest[c] = scale.mean_rest;
      scales.scale[c] = scale.scale, scales.shift[c] = scale.shift;
    }
  }
  parallel_for(rows, kGrain / std::max<int64_t>(channels, 1) + 1, [&](int64_t begin, int64_t end) {
    A scratch[kPiece], residual_scratch[kPiece], target[kPiece];
    for (int64_t row = begin; row < end; ++row)
      for (int64_t c = 0; c < channels; c += kPiece) {
        int64_t count = std::min(kPiece, channels - c), offset = row * channels + c;
        const A* values = input.in_row(row, c, count, scratch);
        const A* added = residual ? residual.in_row(row, c, count, residual_scratch) : nullptr;
        write(values, added, count, relu, output.at(offset, target),
              [&, c](int64_t i, int64_t n, vec<A>& mean, vec<A>& mean_rest, vec<A>& factor, vec<A>& shift) {
                mean = load_lanes(scales.mean + c + i, n), mean_rest = load_lanes(scales.mean_rest + c + i, n);
                factor = load_lanes(scales.scale + c + i, n), shift = load_lanes(scales.shift + c + i, n);
              });
        output.finish(offset, count, target);
      }
  });
}

}  // namespace bigkern::batch_norm
