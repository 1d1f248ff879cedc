// Attention over sequences that lie one after the other: attention.cpp's and attention_backward.cpp's kernels on a view
// of each.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace bigkern {
namespace {

// Tokens [begin, end) of packed queries, and of packed keys.
struct Sequence {
  int64_t index, q_begin, q_end, k_begin, k_end;
  double work() const { return double(q_end - q_begin) * double(k_end - k_begin); }
};

int64_t read_start(const Tensor& cu_seqlens, int64_t index) {
  return cu_seqlens.as<const int32_t>()[index * cu_seqlens.strides[0]];
}

void check(const Tensor& cu_seqlens, int64_t total, const char* name) {
  bool ordered = read_start(cu_seqlens, 0) == 0;
  for (int64_t i = 1; i < cu_seqlens.sizes[0]; ++i)
    ordered = ordered && read_start(cu_seqlens, i - 1) <= read_start(cu_seqlens, i);
  if (!ordered || read_start(cu_seqlens, cu_seqlens.sizes[0] - 1) > total)
    throw std::invalid_argument(std::string("attention_varlen: ") + name + " must rise from 0 to at most " +
                                std::to_string(total));
}

std::vector<Sequence> sequences_of(const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k) {
  std::vector<Sequence> sequences;
  for (int64_t i = 0; i + 1 < cu_seqlens_q.sizes[0]; ++i)
    sequences.push_back({i, read_start(cu_seqlens_q, i), read_start(cu_seqlens_q, i + 1), read_start(cu_seqlens_k, i),
                         read_start(cu_seqlens_k, i + 1)});
  return sequences;
}

// [total, heads, dim] as the [1, heads, end - begin, dim] of one sequence.
Tensor view(const Tensor& packed, int64_t item_size, int64_t begin, int64_t end) {
  if (!packed.defined()) return {};
  return {static_cast<char*>(packed.data) + begin * packed.strides[0] * item_size,
          packed.dtype,
          4,
          {1, packed.sizes[1], end - begin, packed.sizes[2]},
          {0, packed.strides[1], packed.strides[0], packed.strides[2]}};
}

// [heads, total] as [1, heads, end - begin].
Tensor row_view(const Tensor& rows, int64_t item_size, int64_t begin, int64_t end) {
  if (!rows.defined()) return {};
  return {static_cast<char*>(rows.data) + begin * rows.strides[1] * item_size,
          rows.dtype,
          3,
          {1, rows.sizes[0], end - begin},
          {0, rows.strides[0], rows.strides[1]}};
}

// [batch, heads] as [1, heads] of one sequence.
Tensor slopes_view(const Tensor& slopes, int64_t index) {
  if (!slopes.defined()) return {};
  int64_t item_size = slopes.dtype == DType::float64 ? 8 : 4;
  return {static_cast<char*>(slopes.data) + index * slopes.strides[0] * item_size,
          slopes.dtype,
          2,
          {1, slopes.sizes[1]},
          {0, slopes.strides[1]}};
}

int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// What belongs to no sequence.
void clear_from(const Tensor& packed, int64_t first) {
  int64_t row_bytes = packed.sizes[1] * packed.sizes[2] * size_of(packed.dtype);
  std::fill(static_cast<char*>(packed.data) + first * row_bytes,
            static_cast<char*>(packed.data) + packed.sizes[0] * row_bytes, char{0});
}

// Calls body(sequence): long ones one after the other, each on all threads; the others beside each other.
template <class Body>
void over_sequences(std::vector<Sequence> sequences, const Body& body) {
  std::stable_sort(sequences.begin(), sequences.end(), [](auto& a, auto& b) { return a.work() > b.work(); });
  double total = 0;
  for (const Sequence& sequence : sequences) total += sequence.work();
  size_t next = 0;
  for (; next < sequences.size() && 2 * available_threads() * sequences[next].work() > total; ++next)
    body(sequences[next]);
  parallel_for_dynamic(static_cast<int64_t>(sequences.size() - next),
                       [&](int64_t i) { body(sequences[next + static_cast<size_t>(i)]); });
}

}  // namespace

void attention_varlen_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cu_seqlens_q,
                              const Tensor& cu_seqlens_k, int64_t, int64_t, bool is_causal, double scale,
                              const Tensor& alibi_slopes, int64_t window_left, int64_t window_right,
                              const Tensor& output, const Tensor& lse) {
  check(cu_seqlens_q, query.sizes[0], "cu_seqlens_q");
  check(cu_seqlens_k, key.sizes[0], "cu_seqlens_k");
  int64_t size = size_of(query.dtype), lse_size = size_of(lse.dtype);
  over_sequences(sequences_of(cu_seqlens_q, cu_seqlens_k), [&](const Sequence& s) {
    if (s.q_begin == s.q_end) return;
    attention_forward(view(query, size, s.q_begin, s.q_end), view(key, size, s.k_begin, s.k_end),
                      view(value, size, s.k_begin, s.k_end), {}, {}, 0.0, is_causal, scale,
                      slopes_view(alibi_slopes, s.index), window_left, window_right,
                      view(output, size, s.q_begin, s.q_end), row_view(lse, lse_size, s.q_begin, s.q_end));
  });
  int64_t end = read_start(cu_seqlens_q, cu_seqlens_q.sizes[0] - 1);
  clear_from(output, end);
  for (int64_t h = 0; h < lse.sizes[0]; ++h)
    for (int64_t i = end; i < lse.sizes[1]; ++i)
      if (lse.dtype == DType::float64)
        lse.as<double>()[h * lse.sizes[1] + i] = -std::numeric_limits<double>::infinity();
      else
        lse.as<float>()[h * lse.sizes[1] + i] = -std::numeric_limits<float>::infinity();
}

void attention_varlen_backward(const Tensor& grad_output, const Tensor& grad_lse, const Tensor& query,
                               const Tensor& key, const Tensor& value, const Tensor& output, const Tensor& lse,
                               const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t, int64_t, bool is_causal,
                               double scale, const Tensor& alibi_slopes, int64_t window_left, int64_t window_right,
                               const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value) {
  check(cu_seqlens_q, query.sizes[0], "cu_seqlens_q");
  check(cu_seqlens_k, key.sizes[0], "cu_seqlens_k");
  int64_t size = size_of(query.dtype), lse_size = size_of(lse.dtype);
  over_sequences(sequences_of(cu_seqlens_q, cu_seqlens_k), [&](const Sequence& s) {
    auto queries = [&](const Tensor& packed) { return view(packed, size, s.q_begin, s.q_end); };
    auto keys = [&](const Tensor& packed) { return view(packed, size, s.k_begin, s.k_end); };
    auto rows = [&](const Tensor& packed) { return row_view(packed, lse_size, s.q_begin, s.q_end); };
    attention_backward(queries(grad_output), rows(grad_lse), queries(query), keys(key), keys(value), {},
                       queries(output), rows(lse), {}, 0.0, is_causal, scale, slopes_view(alibi_slopes, s.index),
                       window_left, window_right, false, queries(grad_query), keys(grad_key), keys(grad_value), {});
  });
  clear_from(grad_query, read_start(cu_seqlens_q, cu_seqlens_q.sizes[0] - 1));
  int64_t end = read_start(cu_seqlens_k, cu_seqlens_k.sizes[0] - 1);
  clear_from(grad_key, end);
  clear_from(grad_value, end);
}

}  // namespace bigkern
