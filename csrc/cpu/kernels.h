// Every CPU kernel: inputs in the order of the op's schema, then the outputs, which the caller has allocated.
// Shapes and meaning stand in bigkern/ops/<op>.py; arguments are checked there.
#pragma once

#include <string>

#include "../tensor.h"

namespace bigkern {

void adagrad_step(const TensorList& params, const TensorList& grads, const TensorList& state_sums,
                  const TensorList& state_steps, const TensorList& master_params, const Tensor& grad_factor,
                  const Tensor& found_inf, double lr, double lr_decay, double eps, double weight_decay, bool maximize,
                  bool zero_grad);

void adam_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
               const TensorList& exp_avg_sqs, const TensorList& max_exp_avg_sqs, const TensorList& state_steps,
               const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
               double beta1, double beta2, double eps, double weight_decay, bool decoupled_weight_decay, bool maximize,
               bool zero_grad);

void adaptive_avg_pool2d_forward(const Tensor& input, int64_t out_h, int64_t out_w, const Tensor& output);
void adaptive_avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width, const Tensor& grad_input);

void add_layer_norm_forward(const Tensor& input, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                            const Tensor& rng_state, double eps, double dropout_p, bool save_sum, const Tensor& output,
                            const Tensor& sum, const Tensor& mean, const Tensor& rstd);
void add_layer_norm_backward(const Tensor& grad_output, const Tensor& grad_sum, const Tensor& sum, const Tensor& weight,
                             const Tensor& bias, const Tensor& mean, const Tensor& rstd, const Tensor& rng_state,
                             double dropout_p, bool needs_sum_grad, bool needs_weight_grad, bool needs_bias_grad,
                             const Tensor& grad_input, const Tensor& grad_residual, const Tensor& grad_weight,
                             const Tensor& grad_bias);

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

void avg_pool2d_forward(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, bool ceil_mode, bool count_include_pad, int64_t divisor_override,
                        const Tensor& output);
void avg_pool2d_backward(const Tensor& grad_output, int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w,
                         int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, bool ceil_mode,
                         bool count_include_pad, int64_t divisor_override, const Tensor& grad_input);

void batch_norm_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& residual,
                            const Tensor& running_mean, const Tensor& running_var, bool training, double eps,
                            const std::string& activation, const Tensor& output, const Tensor& mean, const Tensor& var);
void batch_norm_act_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& bias,
                             const Tensor& mean, const Tensor& var, const Tensor& output, bool training, double eps,
                             bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                             bool needs_residual_grad, const Tensor& grad_input, const Tensor& grad_weight,
                             const Tensor& grad_bias, const Tensor& grad_residual);

void binary_cross_entropy_with_logits_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                                              const Tensor& pos_weight, const std::string& reduction,
                                              const Tensor& loss);
void binary_cross_entropy_with_logits_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                                               const Tensor& weight, const Tensor& pos_weight,
                                               const std::string& reduction, bool needs_target_grad,
                                               const Tensor& grad_input, const Tensor& grad_target);

void cache_append_step(const TensorList& caches, const TensorList& scales, const Tensor& key, const Tensor& value,
                       const Tensor& cache_seqlens, const Tensor& block_table);

void clip_grads_step(const TensorList& grads, const Tensor& grad_factor);

void conv2d_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t stride_h, int64_t stride_w,
                    int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                    const std::string& activation, const Tensor& output);
void conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, int64_t stride_h,
                     int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
                     int64_t groups, bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                     const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias);

void conv_transpose2d_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t stride_h,
                              int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t output_padding_h,
                              int64_t output_padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                              const Tensor& output);
void conv_transpose2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, int64_t stride_h,
                               int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t output_padding_h,
                               int64_t output_padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                               bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                               const Tensor& grad_input, const Tensor& grad_weight, const Tensor& grad_bias);

void cross_entropy_forward(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                           const std::string& reduction, double label_smoothing, const Tensor& loss, const Tensor& lse,
                           const Tensor& total_weight);
void cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& weight,
                            const Tensor& lse, const Tensor& total_weight, int64_t ignore_index,
                            const std::string& reduction, double label_smoothing, bool needs_target_grad,
                            const Tensor& grad_input, const Tensor& grad_target);

void dequantize_forward(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point, const Tensor& output);

void distillation_loss_forward(const Tensor& student, const Tensor& teacher, double temperature,
                               const std::string& reduction, const Tensor& loss, const Tensor& statistics);
void distillation_loss_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                                const Tensor& statistics, double temperature, const std::string& reduction,
                                const Tensor& grad_student);

void embedding_forward(const Tensor& input, const Tensor& weight, int64_t padding_idx, bool scale_grad_by_freq,
                       const Tensor& output);
void embedding_backward(const Tensor& grad_output, const Tensor& input, int64_t num_embeddings, int64_t padding_idx,
                        bool scale_grad_by_freq, const Tensor& grad_weight);

void embedding_bag_forward(const Tensor& input, const Tensor& weight, const Tensor& offsets,
                           const Tensor& per_sample_weights, const std::string& mode, int64_t padding_idx,
                           bool scale_grad_by_freq, bool include_last_offset, const Tensor& output,
                           const Tensor& bag_size, const Tensor& max_indices);
void embedding_bag_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& offsets,
                            const Tensor& per_sample_weights, const Tensor& bag_size, const Tensor& max_indices,
                            const std::string& mode, int64_t padding_idx, bool scale_grad_by_freq,
                            bool include_last_offset, bool needs_weight_grad, bool needs_per_sample_weights_grad,
                            const Tensor& grad_weight, const Tensor& grad_per_sample_weights);

void embedding_layer_norm_forward(const Tensor& input, const Tensor& word_weight, const Tensor& position_ids,
                                  const Tensor& position_weight, const Tensor& token_type_ids,
                                  const Tensor& token_type_weight, const Tensor& weight, const Tensor& bias,
                                  const Tensor& rng_state, int64_t padding_idx, double eps, double dropout_p,
                                  const Tensor& output, const Tensor& mean, const Tensor& rstd);
void embedding_layer_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& word_weight,
                                   const Tensor& position_ids, const Tensor& position_weight,
                                   const Tensor& token_type_ids, const Tensor& token_type_weight, const Tensor& weight,
                                   const Tensor& bias, const Tensor& mean, const Tensor& rstd, const Tensor& rng_state,
                                   int64_t padding_idx, double dropout_p, bool needs_table_grads,
                                   bool needs_weight_grad, bool needs_bias_grad, const Tensor& grad_word_weight,
                                   const Tensor& grad_position_weight, const Tensor& grad_token_type_weight,
                                   const Tensor& grad_weight, const Tensor& grad_bias);

void gated_act_forward(const Tensor& gate, const Tensor& up, const std::string& activation, const Tensor& output);
void gated_act_backward(const Tensor& grad_output, const Tensor& gate, const Tensor& up, const std::string& activation,
                        const Tensor& grad_gate, const Tensor& grad_up);

void grad_norm_forward(const TensorList& grads, const Tensor& grad_scale, double norm_type, double max_norm,
                       const Tensor& total_norm, const Tensor& grad_factor);

void group_norm_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, int64_t num_groups, double eps,
                        const Tensor& output, const Tensor& mean, const Tensor& rstd);
void group_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& bias,
                         const Tensor& mean, const Tensor& rstd, int64_t num_groups, bool needs_input_grad,
                         bool needs_weight_grad, bool needs_bias_grad, const Tensor& grad_input,
                         const Tensor& grad_weight, const Tensor& grad_bias);

void gru_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                 const Tensor& lengths, bool reverse, bool save_gates, const Tensor& output, const Tensor& h_n,
                 const Tensor& gates);
void gru_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& gates, const Tensor& output,
                  const Tensor& weight_hh, const Tensor& h0, const Tensor& lengths, bool reverse,
                  const Tensor& grad_gates_input, const Tensor& grad_gates_hidden, const Tensor& grad_h0);

void int8_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale, const Tensor& bias,
                         const std::string& activation, bool save_pre_activation, const Tensor& output,
                         const Tensor& pre_activation);

void kl_div_forward(const Tensor& input, const Tensor& target, const std::string& reduction, bool log_target,
                    const Tensor& loss);
void kl_div_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const std::string& reduction,
                     bool log_target, bool needs_target_grad, const Tensor& grad_input, const Tensor& grad_target);

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

void linear_cross_entropy_forward(const Tensor& input, const Tensor& linear_weight, const Tensor& linear_bias,
                                  const Tensor& target, const Tensor& weight, int64_t ignore_index,
                                  const std::string& reduction, double label_smoothing, bool needs_input_grad,
                                  bool needs_weight_grad, bool needs_bias_grad, const Tensor& loss,
                                  const Tensor& grad_input, const Tensor& grad_linear_weight,
                                  const Tensor& grad_linear_bias);
void linear_cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& linear_weight,
                                   const Tensor& linear_bias, const Tensor& target, const Tensor& weight,
                                   int64_t ignore_index, const std::string& reduction, double label_smoothing,
                                   bool needs_input_grad, bool needs_weight_grad, bool needs_bias_grad,
                                   const Tensor& grad_input, const Tensor& grad_linear_weight,
                                   const Tensor& grad_linear_bias);

void lstm_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                  const Tensor& c0, const Tensor& lengths, bool reverse, bool save_gates, const Tensor& output,
                  const Tensor& h_n, const Tensor& c_n, const Tensor& gates, const Tensor& cells);
void lstm_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& grad_c_n, const Tensor& gates,
                   const Tensor& cells, const Tensor& weight_hh, const Tensor& c0, const Tensor& lengths, bool reverse,
                   const Tensor& grad_gates, const Tensor& grad_h0, const Tensor& grad_c0);

void max_pool2d_forward(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, bool ceil_mode,
                        const Tensor& output, const Tensor& indices);
void max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, int64_t height, int64_t width,
                         int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                         int64_t pad_w, int64_t dilation_h, int64_t dilation_w, const Tensor& grad_input);

void mse_loss_forward(const Tensor& input, const Tensor& target, const std::string& reduction, const Tensor& loss);
void mse_loss_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target, const std::string& reduction,
                       bool needs_target_grad, const Tensor& grad_input, const Tensor& grad_target);

void quantize_forward(const Tensor& input, bool symmetric, const Tensor& qinput, const Tensor& scale,
                      const Tensor& zero_point);

void rms_norm_forward(const Tensor& input, const Tensor& weight, double eps, const Tensor& output, const Tensor& rstd);
void rms_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& rstd,
                       bool needs_input_grad, bool needs_weight_grad, const Tensor& grad_input,
                       const Tensor& grad_weight);

void rmsprop_step(const TensorList& params, const TensorList& grads, const TensorList& square_avgs,
                  const TensorList& grad_avgs, const TensorList& momentum_buffers, const TensorList& state_steps,
                  const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
                  double alpha, double eps, double weight_decay, double momentum, bool maximize, bool zero_grad);

void rnn_forward(const Tensor& gates_input, const Tensor& weight_hh, const Tensor& bias_hh, const Tensor& h0,
                 const Tensor& lengths, bool reverse, const std::string& nonlinearity, const Tensor& output,
                 const Tensor& h_n);
void rnn_backward(const Tensor& grad_output, const Tensor& grad_h_n, const Tensor& output, const Tensor& weight_hh,
                  const Tensor& lengths, bool reverse, const std::string& nonlinearity, const Tensor& grad_gates,
                  const Tensor& grad_h0);

void rotary_embedding_forward(const Tensor& input, const Tensor& cos, const Tensor& sin, const Tensor& position_ids,
                              int64_t offset, bool interleaved, const Tensor& output);
void rotary_embedding_backward(const Tensor& grad_output, const Tensor& cos, const Tensor& sin,
                               const Tensor& position_ids, int64_t offset, bool interleaved, const Tensor& grad_input);

void sgd_step(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
              const TensorList& master_params, const Tensor& grad_factor, const Tensor& found_inf, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
              bool zero_grad);

void weight_only_linear_forward(const Tensor& input, const Tensor& qweight, const Tensor& weight_scale,
                                const Tensor& weight_zero_point, const Tensor& bias, const std::string& activation,
                                const Tensor& output);

}  // namespace bigkern
