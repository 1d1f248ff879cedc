// Attention for a few queries against many keys, as in decoding: keys and values are read once, where they lie.
//
// One lane is one key while scores are made, one value column while outputs are. Long sequences of few heads are split
// along the keys ("Flash-Decoding", Dao et al., 2023), and the parts merged.
#pragma once

#include "attention.h"

namespace bigkern::attention {

constexpr int64_t kDecodeRows = 8;    // queries that share one kv head, at most: with more, packing pays
constexpr int64_t kDecodeKeys = 128;  // keys of one step of the softmax

// The queries of all heads that share one kv head, against keys [k_begin, k_end): unnormalised.
template <class A>
struct PartialOutput {
  A *output, *row_max, *row_sum;  // [rows, value_dim], [rows], [rows]

  PartialOutput(Cutter& cutter, const Sizes& sizes)
      : output(cutter.take<A>(sizes.group() * sizes.len_q * round_up(sizes.value_dim, lanes<A>))),
        row_max(cutter.take<A>(sizes.group() * sizes.len_q)),
        row_sum(cutter.take<A>(sizes.group() * sizes.len_q)) {}
};

template <class A>
struct DecodeScratch {
  A *query, *scores;

  DecodeScratch(Cutter& cutter, const Sizes& sizes)
      : query(cutter.take<A>(round_up(sizes.head_dim, lanes<A>))), scores(cutter.take<A>(kDecodeKeys)) {}
};

// Scores of one query and up to `lanes` keys.
template <class T, class A = acc_t<T>>
vec<A> scores_of_keys(const A* query, const MatrixView<const T>& keys, int64_t first, int64_t count) {
  constexpr int kLanes = lanes<A>;
  vec<A> sums[kLanes] = {};
  const T* rows[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) rows[lane] = keys.at(first + std::min<int64_t>(lane, count - 1), 0);
  // Many rows at once look random to the processor's own prefetching; the next ones, asked for in order, do not.
  int64_t ahead = std::min<int64_t>(first + kLanes, keys.rows - 1);
  for (int64_t row = ahead; row < std::min<int64_t>(ahead + kLanes, keys.rows); ++row)
    for (int64_t col = 0; col < keys.cols; col += kCacheLine / sizeof(T)) __builtin_prefetch(keys.at(row, col));
  int64_t col = 0;
  for (; col + kLanes <= keys.cols; col += kLanes) {
    vec<A> q = load(query + col);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += q * load(rows[lane] + col);
  }
  if (col < keys.cols) {
    vec<A> q = load(query + col);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += q * load_partial(rows[lane] + col, keys.cols - col);
  }
  transpose(sums);
#pragma GCC unroll 16
  for (int lane = 1; lane < kLanes; ++lane) sums[0] += sums[lane];
  return sums[0];
}

// output[col...] = output * rescale + sum over keys of weights[key] * values[first + key][col...], kVectors at a time.
template <int kVectors, class T, class A = acc_t<T>>
BIGKERN_ALWAYS_INLINE void accumulate_values(const MatrixView<const T>& values, int64_t first, int64_t count,
                                             int64_t col, const A* weights, A rescale, A* output) {
  constexpr int kLanes = lanes<A>;
  vec<A> sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = load(output + col + v * kLanes) * rescale;
  for (int64_t key = 0; key < count; ++key) {
    const T* row = values.at(first + key, col);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[v] += weights[key] * load(row + v * kLanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(output + col + v * kLanes, sums[v]);
}

template <class T, class A = acc_t<T>>
void accumulate_all_values(const MatrixView<const T>& values, int64_t first, int64_t count, const A* weights, A rescale,
                           A* output) {
  constexpr int kLanes = lanes<A>;
  int64_t col = 0;
  for (; col + 4 * kLanes <= values.cols; col += 4 * kLanes)
    accumulate_values<4>(values, first, count, col, weights, rescale, output);
  for (; col + kLanes <= values.cols; col += kLanes)
    accumulate_values<1>(values, first, count, col, weights, rescale, output);
  if (col < values.cols) {
    vec<A> sum = load(output + col) * rescale;
    for (int64_t key = 0; key < count; ++key)
      sum += weights[key] * load_partial(values.at(first + key, col), values.cols - col);
    store(output + col, sum);
  }
}

template <class A>
void apply_mask_to_row(const Tensor& mask, int64_t b, int64_t h, int64_t query, int64_t first, int64_t count,
                       A* scores) {
  auto apply = [&](auto tag) {
    using M = typename decltype(tag)::type;
    auto view = matrix<M>(mask, b, h);
    for (int64_t key = 0; key < count; key += lanes<A>)
      include_mask<M>(scores + key,
                      load_mask<M, A>(view, query, first + key, std::min<int64_t>(lanes<A>, count - key)));
  };
  if (mask.dtype == DType::boolean) return apply(TypeTag<uint8_t>{});
  dispatch_floating(mask.dtype, "attention: attn_mask", [&](auto tag) {
    if constexpr (std::is_same_v<acc_t<typename decltype(tag)::type>, A>) apply(tag);
  });
}

// scores become weights; returns what earlier sums are to be multiplied with.
template <class A>
A softmax_step_of_row(A* scores, int64_t count, A& row_max, A& row_sum) {
  constexpr A kHidden = -std::numeric_limits<A>::infinity();
  std::fill(scores + count, scores + round_up(count, lanes<A>), kHidden);
  vec<A> largest = broadcast(row_max);
  for (int64_t key = 0; key < count; key += lanes<A>) largest = maximum(load(scores + key), largest);
  A new_max = reduce_max(largest), shift = new_max == kHidden ? A(0) : new_max;
  vec<A> sums = {};
  for (int64_t key = 0; key < count; key += lanes<A>) {
    vec<A> weights = exp_of_shifted(load(scores + key) - shift);
    sums += weights;
    store(scores + key, weights);
  }
  A rescale = exp_of_shifted(broadcast(row_max - shift))[0];
  row_sum = row_sum * rescale + reduce_add(sums);
  row_max = new_max;
  return rescale;
}

template <class T, class A = acc_t<T>>
void decode_keys(const Sizes& sizes, const Tensor& query, const Tensor& key, const Tensor& value,
                 const Tensor& attn_mask, A scale, int64_t b, int64_t kv_h, int64_t k_begin, int64_t k_end,
                 const PartialOutput<A>& part) {
  auto scratch = cut<DecodeScratch<A>>(private_workspace(), sizes);
  auto keys = matrix<T>(key, b, kv_h), values = matrix<T>(value, b, kv_h);
  int64_t rows = sizes.group() * sizes.len_q, row_size = round_up(sizes.value_dim, lanes<A>);
  std::fill_n(part.output, rows * row_size, A(0));
  std::fill_n(part.row_max, rows, -std::numeric_limits<A>::infinity());
  std::fill_n(part.row_sum, rows, A(0));
  for (int64_t first = k_begin; first < k_end; first += kDecodeKeys) {
    int64_t count = std::min(kDecodeKeys, k_end - first);
    for (int64_t row = 0; row < rows; ++row) {
      int64_t h = kv_h * sizes.group() + row / sizes.len_q, q = row % sizes.len_q;
      auto queries = matrix<T>(query, b, h);
      for (int64_t col = 0; col < sizes.head_dim; col += lanes<A>)
        store(scratch.query + col, load_row(queries, q, col));
      for (int64_t i = 0; i < count; i += lanes<A>)
        store(scratch.scores + i,
              scores_of_keys(scratch.query, keys, first + i, std::min<int64_t>(lanes<A>, count - i)) * scale);
      if (attn_mask.defined()) apply_mask_to_row(attn_mask, b, h, q, first, count, scratch.scores);
      A rescale = softmax_step_of_row(scratch.scores, count, part.row_max[row], part.row_sum[row]);
      accumulate_all_values(values, first, count, scratch.scores, rescale, part.output + row * row_size);
    }
  }
}

// Adds the sums over other keys to those of `total`.
template <class A>
void merge(const PartialOutput<A>& part, int64_t row, int64_t row_size, PartialOutput<A>& total) {
  A new_max = std::max(total.row_max[row], part.row_max[row]);
  A shift = new_max == -std::numeric_limits<A>::infinity() ? A(0) : new_max;
  A total_scale = std::exp(total.row_max[row] - shift), part_scale = std::exp(part.row_max[row] - shift);
  for (int64_t col = row * row_size; col < (row + 1) * row_size; ++col)
    total.output[col] = total.output[col] * total_scale + part.output[col] * part_scale;
  total.row_sum[row] = total.row_sum[row] * total_scale + part.row_sum[row] * part_scale;
  total.row_max[row] = new_max;
}

inline bool suits_decoding(const Sizes& sizes, const Tensor& key, const Tensor& value, const Dropout& dropout) {
  return sizes.group() * sizes.len_q <= kDecodeRows && !dropout.active && key.strides[3] == 1 && value.strides[3] == 1;
}

template <class T, class A = acc_t<T>>
void attention_decode(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                      double scale, const Tensor& output, const Tensor& lse) {
  constexpr int64_t kSplitKeys = 512, kWorthWaking = 1 << 15;  // keys, and elements read, that a thread should have
  Sizes sizes(query, key, value);
  int64_t kv_heads = sizes.batch * sizes.kv_heads, rows = sizes.group() * sizes.len_q;
  if (kv_heads * rows == 0) return;
  int64_t splits = std::clamp<int64_t>(sizes.len_k / kSplitKeys, 1, ceil_div(available_threads(), kv_heads));
  int64_t keys_per_split = ceil_div(sizes.len_k, splits);
  int64_t elements = keys_per_split * (sizes.head_dim + sizes.value_dim);
  auto parts = cut_many<PartialOutput<A>>(shared_workspace(), kv_heads * splits, sizes);
  parallel_for(
      kv_heads * splits, ceil_div(kWorthWaking, std::max<int64_t>(1, elements)), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          int64_t head = item / splits, k_begin = item % splits * keys_per_split;
          decode_keys<T>(sizes, query, key, value, attn_mask, static_cast<A>(scale), head / sizes.kv_heads,
                         head % sizes.kv_heads, k_begin, std::min(sizes.len_k, k_begin + keys_per_split), parts[item]);
        }
      });
  int64_t row_size = round_up(sizes.value_dim, lanes<A>);
  for (int64_t head = 0; head < kv_heads; ++head)
    for (int64_t row = 0; row < rows; ++row) {
      PartialOutput<A>& total = parts[head * splits];
      for (int64_t split = 1; split < splits; ++split) merge(parts[head * splits + split], row, row_size, total);
      int64_t b = head / sizes.kv_heads, h = head % sizes.kv_heads * sizes.group() + row / sizes.len_q;
      store_output<T>(total.output + row * row_size, total.row_sum[row], sizes.value_dim,
                      row_of<T>(output, b, h, row % sizes.len_q));
      *row_of<A>(lse, b, h, row % sizes.len_q) = total.row_max[row] + std::log(total.row_sum[row]);
    }
}

}  // namespace bigkern::attention
