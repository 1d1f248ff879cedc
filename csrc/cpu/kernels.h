// Every CPU kernel: inputs in the order of the op's schema, then the outputs, which the caller has allocated.
// Shapes and meaning stand in bigkern/ops/<op>.py; arguments are checked there.
#pragma once

#include <string>

#include "../tensor.h"

namespace bigkern {

void add_layer_norm_forward(const Tensor& input, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                            const Tensor& rng_state, double eps, double dropout_p, bool save_sum, const Tensor& output,
                            const Tensor& sum, const Tensor& mean, const Tensor& rstd);
void add_layer_norm_backward(const Tensor& grad_output, const Tensor& grad_sum, const Tensor& sum, const Tensor& weight,
                             const Tensor& bias, const Tensor& mean, const Tensor& rstd, const Tensor& rng_state,
                             double dropout_p, bool needs_sum_grad, bool needs_weight_grad, bool needs_bias_grad,
                             const Tensor& grad_input, const Tensor& grad_residual, const Tensor& grad_weight,
                             const Tensor& grad_bias);
void adagrad_step(const TensorList& params, const TensorList& grads, const TensorList& state_sums,
                  const TensorList& state_steps, const TensorList& master_params, const Tensor& grad_factor,
                  const Tensor& found_inf, double lr, double lr_decay, double eps, double weight_decay, bool maximize,
                  bool zero_grad);

void adam_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
               const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& state_steps,
               const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
               double beta1, double beta2, double eps, double weight_decay, bool decoupled_weight_decay, bool maximize,
               bool zero_grad);

void attention_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                       const Tensor& rng_state, double dropout_p, bool is_causal, double scale,
                       const Tensor& alibi_slopes, int64_t window_left, int64_t window_right, const Tensor& output,
                       const Tensor& lse);
void attention_backward(const Tensor& grad_output, const Tensor& grad_lse, const Tensor& query, const Tensor& key,
                        const Tensor& value, const Tensor& attn_mask, const Tensor& output, const Tensor& lse,
                        const Tensor& rng_state, double dropout_p, bool is_causal, double scale,
                        const Tensor& alibi_slopes, int64_t window_left, int64_t window_right, bool needs_mask_grad,
                        const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value,
                        const Tensor& grad_attn_mask);

void attention_decode_forward(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                              const Tensor& cache_seqlens, const Tensor& block_table, const Tensor& key_scale,
                              const Tensor& value_scale, const Tensor& alibi_slopes, double scale, int64_t window_left,
                              int64_t window_right, const Tensor& output, const Tensor& lse);
void cache_append_step(const TensorList& caches, const TensorList& scales, const Tensor& key, const Tensor& value,
                       const Tensor& cache_seqlens, const Tensor& block_table);

void attention_varlen_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cu_seqlens_q,
                              const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, bool is_causal,
                              double scale, const Tensor& alibi_slopes, int64_t window_left, int64_t window_right,
                              const Tensor& output, const Tensor& lse);
void attention_varlen_backward(const Tensor& grad_output, const Tensor& grad_lse, const Tensor& query,
                               const Tensor& key, const Tensor& value, const Tensor& output, const Tensor& lse,
                               const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
                               int64_t max_seqlen_k, bool is_causal, double scale, const Tensor& alibi_slopes,
                               int64_t window_left, int64_t window_right, const Tensor& grad_query,
                               const Tensor& grad_key, const Tensor& grad_value);

void cross_entropy_forward(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                           const std::string& reduction, double label_smoothing, const Tensor& loss, const Tensor& lse,
                           const Tensor& total_weight);
void cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& weight,
                            const Tensor& lse, const Tensor& total_weight, int64_t ignore_index,
                            const std::string& reduction, double label_smoothing, bool needs_target_grad,
                            const Tensor& grad_input, const Tensor& grad_target);

void grad_norm_forward(const TensorList& grads, const Tensor& grad_scale, double norm_type, double max_norm,
                       const Tensor& total_norm, const Tensor& grad_factor);
void clip_grads_step(const TensorList& grads, const Tensor& grad_factor);

void int8_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale, const Tensor& bias,
                         const std::string& activation, bool save_pre_activation, const Tensor& output,
                         const Tensor& pre_activation);

void layer_norm_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps, const Tensor& output,
                        const Tensor& mean, const Tensor& rstd);
void layer_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& bias,
                         const Tensor& mean, const Tensor& rstd, bool needs_input_grad, bool needs_weight_grad,
                         bool needs_bias_grad, const Tensor& grad_input, const Tensor& grad_weight,
                         const Tensor& grad_bias);

void linear_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const std::string& activation,
                        bool save_pre_activation, const Tensor& output, const Tensor& pre_activation);
void linear_act_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& saved,
                         const std::string& activation, bool needs_input_grad, bool needs_weight_grad,
                         bool needs_bias_grad, const Tensor& grad_input, const Tensor& grad_weight,
                         const Tensor& grad_bias);

void quantize_forward(const Tensor& input, bool symmetric, const Tensor& qinput, const Tensor& scale,
                      const Tensor& zero_point);
void dequantize_forward(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point, const Tensor& output);

void rms_norm_forward(const Tensor& input, const Tensor& weight, double eps, const Tensor& output, const Tensor& rstd);
void rms_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& rstd,
                       bool needs_input_grad, bool needs_weight_grad, const Tensor& grad_input,
                       const Tensor& grad_weight);
void rmsprop_step(const TensorList& params, const TensorList& grads, const TensorList& square_avgs,
                  const TensorList& grad_avgs, const TensorList& momentum_buffers, const TensorList& state_steps,
                  const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
                  double alpha, double eps, double weight_decay, double momentum, bool maximize, bool zero_grad);

void sgd_step(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
              const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
              bool zero_grad);

void weight_only_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale,
                                const Tensor& weight_zero_point, const Tensor& bias, const std::string& activation,
                                const Tensor& output);

}  // namespace bigkern
