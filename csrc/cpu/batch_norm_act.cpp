#include "batch_norm_backward.h"
#include "batch_norm_forward.h"
#include "kernels.h"

namespace bigkern {

using namespace batch_norm;

void batch_norm_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& residual,
                            const Tensor& running_mean, const Tensor& running_var, bool training, double eps,
                            const std::string& activation, const Tensor& output, const Tensor& mean,
                            const Tensor& var) {
  with_precision(input.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    int64_t channels = input.sizes[1];
    norm::Parameter<A, norm::WeightTag> weights(weight, channels, A(1));
    norm::Parameter<A, norm::BiasTag> biases(bias, channels, A(0));
    ForwardChannels<A> per_channel{weights.values(), biases.values(), eps, mean.as<A>(), var.as<A>()};
    ChannelScales<A> scales(channels);
    if (!training) {
      struct MeanTag {};
      struct VarTag {};
      norm::Parameter<A, MeanTag> means(running_mean, channels, A(0));
      norm::Parameter<A, VarTag> vars(running_var, channels, A(1));
      for (int64_t c = 0; c < channels; ++c) {
        ChannelScale<A> scale =
            per_channel.keep(c, static_cast<double>(means.values()[c]), static_cast<double>(vars.values()[c]));
        scales.mean[c] = scale.mean, scales.mean_rest[c] = scale.mean_rest;
        scales.scale[c] = scale.scale, scales.shift[c] = scale.shift;
      }
    }
    auto forward = are_rows(input) ? forward_rows<A> : forward_planes<A>;
    forward(Operand<A>(input), Operand<A>(residual), training, per_channel, scales, activation == "relu",
            Result<A>(output));
  });
}

void batch_norm_act_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const Tensor& /*bias*/, const Tensor& mean, const Tensor& var, const Tensor& output,
                             bool training, double eps, bool needs_input_grad, bool needs_weight_grad,
                             bool needs_bias_grad, bool needs_residual_grad, const Tensor& grad_input,
                             const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad_residual) {
  with_precision(input.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    int64_t channels = input.sizes[1];
    double count = static_cast<double>(input.sizes[0] * input.sizes[2]);
    norm::Parameter<A, norm::WeightTag> weights(weight, channels, A(1));
    struct MeanTag {};
    struct VarTag {};
    norm::Parameter<A, MeanTag> means(mean, channels, A(0));
    norm::Parameter<A, VarTag> vars(var, channels, A(1));
    BackwardOperands<A> operands{Operand<A>(grad_output),
                                 Operand<A>(input),
                                 Operand<A>(output),
                                 training,
                                 needs_input_grad ? Result<A>(grad_input) : Result<A>(),
                                 needs_residual_grad ? Result<A>(grad_residual) : Result<A>()};
    auto gradient_of = [&](int64_t c, const ChannelSums& sums) {
      if (count == 0) {  // nothing to sum, and the statistics are NaN
        if (needs_weight_grad) set_value(grad_weight, c, 0);
        if (needs_bias_grad) set_value(grad_bias, c, 0);
        return ChannelGradient<A>{};
      }
      double rstd = 1 / std::sqrt(static_cast<double>(vars.values()[c]) + eps);
      double scale = rstd * static_cast<double>(weights.values()[c]);
      // The forward stored a rounded mean; the sum of what it left says by how much.
      double rest = training ? sums.d / count : 0, gd = sums.gd - rest * sums.g;
      if (needs_weight_grad) set_value(grad_weight, c, gd * rstd);
      if (needs_bias_grad) set_value(grad_bias, c, sums.g);
      return ChannelGradient<A>{means.values()[c], static_cast<A>(rest), static_cast<A>(scale),
                                static_cast<A>(scale * (sums.g / count)),
                                static_cast<A>(scale * rstd * rstd * (gd / count))};
    };
    bool needs_sums = needs_weight_grad || needs_bias_grad || (training && needs_input_grad);
    auto run = [&](auto&& backward) {
      backward(operands, means.values(), needs_sums, needs_input_grad || needs_residual_grad, gradient_of);
    };
    if (are_rows(input))
      run([](auto&&... args) { backward_rows<A>(args...); });
    else
      run([](auto&&... args) { backward_planes<A>(args...); });
  });
}

}  // namespace bigkern
