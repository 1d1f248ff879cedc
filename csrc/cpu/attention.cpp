// Attention forward: FlashAttention-2 (Dao, 2023) on the CPU. One block of queries meets one block of keys after the
// other; a running maximum and sum per query make the softmax exact, and no score leaves the cache.
#include "attention.h"

#include "attention_decode.h"
#include "kernels.h"

namespace bigkern {
namespace {

using namespace attention;

// Packed keys and values of one head, shared by all threads.
template <class E>
struct PackedKeys {
  E *key, *value;

  PackedKeys(Cutter& cutter, const Sizes& sizes)
      : key(cutter.take<E>(row_panels_size<E>(sizes.padded_k(), sizes.head_dim))),
        value(cutter.take<E>(depth_panels_size<E>(sizes.padded_k(), sizes.value_dim))) {}
};

// What one thread needs for one block of queries.
template <class E, class A = acc_t<E>>
struct QueryBlock {
  E *query, *weights;
  A *scores, *factors, *output, *row_max, *row_sum, *rescale;

  QueryBlock(Cutter& cutter, const Sizes& sizes, bool dropout)
      : query(cutter.take<E>(transposed_panels_size<E>(kBlockQ, sizes.head_dim))),
        weights(cutter.take<E>(kDepth<E> == 1 ? 0 : kBlockK / 2 * kBlockQ)),
        scores(cutter.take<A>(kBlockK * kBlockQ)),
        factors(cutter.take<A>(dropout ? kBlockK * kBlockQ : 0)),
        output(cutter.take<A>(kBlockQ * round_up(sizes.value_dim, kPanel<E>))),
        row_max(cutter.take<A>(kBlockQ)),
        row_sum(cutter.take<A>(kBlockQ)),
        rescale(cutter.take<A>(kBlockQ)) {
    if constexpr (kDepth<E> == 1) weights = scores;  // exp happens in place
  }
};

// One online-softmax step for one vector of queries: scores become weights exp(score - maximum), with dropout where
// `factors` is not null.
template <class E, class A = acc_t<E>>
void softmax_step(const Tile& tile, int64_t i, const A* factors, QueryBlock<E>& block) {
  const A* scores = block.scores + i;
  vec<A> old_max = load(block.row_max + i), new_max = old_max;
  for (int64_t key = 0; key < tile.keys; ++key) new_max = maximum(load(scores + key * kBlockQ), new_max);
  // A row that has seen no visible key keeps weights of 0: -inf - (-inf) would be NaN.
  vec<A> shift = select(new_max == -std::numeric_limits<A>::infinity(), vec<A>{}, new_max);
  vec<A> rescale = exp_of_shifted(old_max - shift), sum = load(block.row_sum + i) * rescale;

  auto weight_of = [&](int64_t key) {
    vec<A> weight = exp_of_shifted(load(scores + key * kBlockQ) - shift);
    sum += weight;
    return factors ? weight * load(factors + key * kBlockQ + i) : weight;
  };
  if constexpr (kDepth<E> == 1) {
    for (int64_t key = 0; key < tile.keys; ++key) store(block.weights + key * kBlockQ + i, weight_of(key));
  } else {
    int64_t key = 0;
    for (; key + 1 < tile.keys; key += 2) {
      vec<A> first = weight_of(key);
      store_elements(block.weights + key / 2 * kBlockQ + i, pair_up(first, weight_of(key + 1)));
    }
    if (key < tile.keys) store_elements(block.weights + key / 2 * kBlockQ + i, pair_up(weight_of(key), vec<A>{}));
  }
  store(block.row_max + i, new_max);
  store(block.row_sum + i, sum);
  store(block.rescale + i, rescale);
}

// Sums, over all visible keys, into block.output, block.row_max and block.row_sum.
template <class E, class A = acc_t<E>>
void attend(Tile tile, const Sizes& sizes, const PackedKeys<E>& packed, const Tensor& attn_mask, const Dropout& dropout,
            A scale, QueryBlock<E>& block) {
  std::fill_n(block.output, kBlockQ * round_up(sizes.value_dim, kPanel<E>), A(0));
  std::fill_n(block.row_max, kBlockQ, -std::numeric_limits<A>::infinity());
  std::fill_n(block.row_sum, kBlockQ, A(0));
  int64_t k_end = tile.window.end_key(tile.q0 + tile.queries, sizes.len_k);
  for (tile.k0 = tile.window.first_key(tile.q0); tile.k0 < k_end; tile.k0 += kBlockK) {
    tile.keys = std::min<int64_t>(kBlockK, k_end - tile.k0);
    multiply_keys_by_queries<E>(tile, packed.key, sizes.padded_k(), block.query, ceil_div(sizes.head_dim, kDepth<E>),
                                scale, block.scores);
    apply_mask(tile, attn_mask, block.scores);
    if (dropout.active) dropout_factors(tile, dropout, block.factors);
    over_query_vectors<A>(
        tile, [&](int64_t i) { softmax_step<E>(tile, i, dropout.active ? block.factors : nullptr, block); });
    accumulate_over_keys<E>(tile, block.weights, packed.value, sizes.padded_k(), sizes.value_dim, block.rescale,
                            block.output);
  }
}

template <class T, class E, class A = acc_t<T>>
void attention_forward_typed(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                             const Dropout& dropout, double scale, const Tensor& alibi_slopes, const Window& window,
                             const Tensor& output, const Tensor& lse) {
  Sizes sizes(query, key, value);
  HeadWaves waves(sizes.batch * sizes.kv_heads, bytes_of<PackedKeys<E>>(sizes));
  auto packed = cut_many<PackedKeys<E>>(shared_workspace(), waves.size, sizes);

  for (int64_t first = 0; first < waves.heads; first += waves.size) {
    int64_t heads = std::min(waves.size, waves.heads - first), blocks_k = sizes.blocks_k();
    parallel_for(heads * blocks_k, 4, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        int64_t head = item / blocks_k, b = (first + head) / sizes.kv_heads, h = (first + head) % sizes.kv_heads;
        int64_t row = item % blocks_k * kBlockK, rows = std::min<int64_t>(kBlockK, sizes.padded_k() - row);
        auto keys = matrix<T>(key, b, h), values = matrix<T>(value, b, h);
        int64_t real_rows = std::min(rows, sizes.len_k - row);
        pack_row_panels<E>(keys.rows_from(row, real_rows), row, rows, sizes.padded_k(), packed[head].key);
        pack_depth_panels<E>(values.rows_from(row, real_rows), row, rows, sizes.padded_k(), packed[head].value);
      }
    });
    int64_t blocks = sizes.blocks_q() * sizes.group();
    parallel_for_dynamic(heads * blocks, [&](int64_t item) {
      auto block = cut<QueryBlock<E>>(private_workspace(), sizes, dropout.active);
      int64_t head = item / blocks, kv_h = (first + head) % sizes.kv_heads;
      // The last block of a causal head is the longest: first, so that the threads end together.
      int64_t block_q = sizes.blocks_q() - 1 - item % sizes.blocks_q();
      int64_t b = (first + head) / sizes.kv_heads, h = kv_h * sizes.group() + item % blocks / sizes.blocks_q();
      int64_t q0 = block_q * kBlockQ, queries = std::min<int64_t>(kBlockQ, sizes.len_q - q0);
      Tile tile{b, h, q0, queries, 0, 0, window, slope_of(alibi_slopes, b, h)};
      pack_transposed_panels<E>(matrix<T>(query, tile.b, tile.h).rows_from(tile.q0, tile.queries), block.query);
      attend<E>(tile, sizes, packed[head], attn_mask, dropout, static_cast<A>(scale), block);

      for (int64_t i = 0; i < tile.queries; ++i) {
        store_output<T>(block.output + i * round_up(sizes.value_dim, kPanel<E>), block.row_sum[i], sizes.value_dim,
                        row_of<T>(output, tile.b, tile.h, tile.q0 + i));
        *row_of<A>(lse, tile.b, tile.h, tile.q0 + i) = block.row_max[i] + std::log(block.row_sum[i]);
      }
    });
  }
  shared_workspace().trim();
}

}  // namespace

void attention_forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attn_mask,
                       const Tensor& rng_state, double dropout_p, bool is_causal, double scale,
                       const Tensor& alibi_slopes, int64_t window_left, int64_t window_right, const Tensor& output,
                       const Tensor& lse) {
  Window window(is_causal, window_left, window_right);
  Dropout dropout(rng_state, dropout_p, query.sizes[1]);
  dispatch_floating(query.dtype, "attention_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    bool by_place = alibi_slopes.defined() || !window.is_unlimited();
    if (!by_place && suits_decoding(Sizes(query, key, value), key, value, dropout))
      return attention_decode<T>(query, key, value, attn_mask, scale, output, lse);
    dispatch_elements<T>([&](auto element) {
      attention_forward_typed<T, typename decltype(element)::type>(query, key, value, attn_mask, dropout, scale,
                                                                   alibi_slopes, window, output, lse);
    });
  });
}

}  // namespace bigkern
