#include "batch_norm_backward.h"
#include "batch_norm_forward.h"
#include "kernels.h"

namespace bigkern {

using namespace batch_norm;

namespace {

// A group of one image as a channel of its own: its planes take the place of the batch.
template <class A>
struct Groups {
  int64_t batch, groups, planes, positions;
  Pieces pieces;

  Groups(const Tensor& input, int64_t num_groups)
      : batch(input.sizes[0]),
        groups(num_groups),
        planes(input.sizes[1] / num_groups),
        positions(input.sizes[2]),
        pieces(planes, positions) {}

  int64_t count() const { return batch * groups; }
  int64_t grain() const { return kGrain / std::max<int64_t>(planes * positions, 1) + 1; }
  Operand<A> view(const Tensor& tensor, int64_t group) const {
    Operand<A> view(tensor);
    view.data = view.address(group / groups * view.stride_n + group % groups * planes * view.stride_c);
    view.batch = planes, view.channels = 1, view.stride_n = view.stride_c, view.stride_c = 0;
    return view;
  }
};

}  // namespace

void group_norm_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t num_groups, double eps,
                        const Tensor& output, const Tensor& mean, const Tensor& rstd) {
  with_precision(input.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    int64_t channels = input.sizes[1];
    norm::Parameter<A, norm::WeightTag> weights(weight, channels, A(1));
    norm::Parameter<A, norm::BiasTag> biases(bias, channels, A(0));
    Groups<A> groups(input, num_groups);
    Operand<A> whole(input), none(Tensor{});
    Result<A> result(output);
    parallel_for(groups.count(), groups.grain(), [&](int64_t begin, int64_t end) {
      A scratch[kPiece];
      for (int64_t i = begin; i < end; ++i) {
        Operand<A> view = groups.view(input, i);
        Moments total;
        for (int64_t piece = 0; piece < groups.pieces.count; ++piece)
          total.include(norm::moments_of<true>(groups.pieces.load(view, 0, piece, scratch), groups.pieces.size(piece)));
        norm::Scale<A> scale(total, eps);
        mean.as<A>()[i] = scale.mean;
        rstd.as<A>()[i] = scale.rstd;
        for (int64_t plane = 0; plane < groups.planes; ++plane) {
          int64_t c = i % groups.groups * groups.planes + plane;
          write_plane(
              whole, none, i / groups.groups, c, false,
              ChannelScale<A>{scale.mean, scale.mean_rest, scale.rstd * weights.values()[c], biases.values()[c]},
              result);
        }
      }
    });
  });
}

void group_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& /*bias*/,
                         const Tensor& mean, const Tensor& rstd, int64_t num_groups, bool needs_input_grad,
                         bool needs_weight_grad, bool needs_bias_grad, const Tensor& grad_input,
                         const Tensor& grad_weight, const Tensor& grad_bias) {
  with_precision(input.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    int64_t channels = input.sizes[1];
    norm::Parameter<A, norm::WeightTag> weights(weight, channels, A(1));
    Groups<A> groups(input, num_groups);
    double count = static_cast<double>(groups.planes * groups.positions);
    Pieces plane_pieces(1, groups.positions);
    BackwardOperands<A> whole{Operand<A>(grad_output),
                              Operand<A>(input),
                              Operand<A>(Tensor{}),
                              true,
                              needs_input_grad ? Result<A>(grad_input) : Result<A>(),
                              Result<A>()};
    // The gradients of weight and bias from each plane.
    std::vector<double> parts(static_cast<size_t>(2 * groups.batch * channels));
    parallel_for(groups.count(), groups.grain(), [&](int64_t begin, int64_t end) {
      std::vector<ChannelSums> sums(static_cast<size_t>(groups.planes));
      for (int64_t i = begin; i < end; ++i) {
        int64_t n = i / groups.groups, group = i % groups.groups, first = group * groups.planes;
        A center = mean.as<const A>()[n * mean.strides[0] + group * mean.strides[1]];
        double factor = rstd.as<const A>()[n * rstd.strides[0] + group * rstd.strides[1]];
        BackwardOperands<A> image{
            groups.view(grad_output, i), groups.view(input, i), Operand<A>(Tensor{}), true, Result<A>(), Result<A>()};
        ChannelSums total;
        for (int64_t plane = 0; plane < groups.planes; ++plane) {
          ChannelSums own;
          BackwardOperands<A> at = image;
          at.input.data = image.input.address(plane * image.input.stride_n);
          at.grad_output.data = image.grad_output.address(plane * image.grad_output.stride_n);
          for (int64_t piece = 0; piece < plane_pieces.count; ++piece)
            sum_piece(at, plane_pieces, 0, piece, center, own);
          sums[plane] = own;
          double w = weights.values()[first + plane];
          total.d += own.d, total.g += w * own.g, total.gd += w * own.gd;
        }
        // The forward stored a rounded mean; the sum of what it left says by how much.
        double rest = total.d / count, slope = total.gd - rest * total.g;
        for (int64_t plane = 0; plane < groups.planes; ++plane) {
          int64_t c = first + plane;
          parts[2 * (n * channels + c)] = (sums[plane].gd - rest * sums[plane].g) * factor;
          parts[2 * (n * channels + c) + 1] = sums[plane].g;
          if (needs_input_grad)
            write_plane_gradients(
                whole, n, c,
                ChannelGradient<A>{center, static_cast<A>(rest), static_cast<A>(factor * weights.values()[c]),
                                   static_cast<A>(factor * total.g / count),
                                   static_cast<A>(factor * factor * factor * slope / count)});
        }
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      double sums[2] = {};
      for (int64_t n = 0; groups.positions > 0 && n < groups.batch; ++n)
        for (int k = 0; k < 2; ++k) sums[k] += parts[2 * (n * channels + c) + k];
      if (needs_weight_grad) set_value(grad_weight, c, sums[0]);
      if (needs_bias_grad) set_value(grad_bias, c, sums[1]);
    }
  });
}

}  // namespace bigkern
