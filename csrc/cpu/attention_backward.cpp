// Attention backward by recomputation (FlashAttention-2, Dao, 2023): the weights P come again from the saved lse.
//
//   delta = rowsum(grad_output * output) - grad_lse      dS = P * (grad_output V^T - delta)
//   grad_query = scale dS K      grad_key = scale dS^T Q      grad_value = P^T grad_output
//
// Sums are never shared between threads, so results do not depend on their number. With enough heads, one task per kv
// head makes all gradients in one sweep (five products a tile); with few, keys and queries are swept apart (seven), in
// more and smaller tasks.
#include "attention_backward_tile.h"
#include "kernels.h"

namespace bigkern {
namespace {

using namespace attention;

struct Arguments {
  const Tensor &grad_output, &grad_lse, &query, &key, &value, &attn_mask, &output, &lse;
  Dropout dropout;
  double scale;
  const Tensor& alibi_slopes;
  Window window;
  bool needs_mask_grad;
  const Tensor &grad_query, &grad_key, &grad_value, &grad_attn_mask;
};

template <class T, class E>
class Backward : Arguments {
  using A = acc_t<T>;

 public:
  explicit Backward(const Arguments& arguments) : Arguments(arguments) {}

  void run() {
    HeadWaves waves(sizes.batch * sizes.kv_heads, bytes_of<PackedHead<E>>(sizes));
    packed = cut_many<PackedHead<E>>(shared_workspace(), waves.size, sizes);
    for (first_head = 0; first_head < waves.heads; first_head += waves.size) {
      int64_t heads = std::min(waves.size, waves.heads - first_head);
      int64_t blocks_k = sizes.blocks_k(), blocks_q = sizes.group() * sizes.blocks_q(), blocks = blocks_k + blocks_q;
      parallel_for(heads * blocks, 2, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          int64_t head = item / blocks, block = item % blocks;
          if (block < blocks_k)
            pack_keys(head, block);
          else
            pack_queries(head, (block - blocks_k) / sizes.blocks_q(), (block - blocks_k) % sizes.blocks_q());
        }
      });
      if (one_sweep_is_faster(waves.heads)) {
        parallel_for_dynamic(heads, [&](int64_t head) { sweep_head(head); });
      } else {
        parallel_for_dynamic(heads * blocks_k, [&](int64_t item) { sweep_keys(item / blocks_k, item % blocks_k); });
        parallel_for_dynamic(heads * blocks_q, [&](int64_t item) {
          auto scratch = make_scratch(0);
          int64_t block = item % blocks_q;
          // The last block of a causal head is the longest: first, so that the threads end together.
          int64_t block_q = sizes.blocks_q() - 1 - block % sizes.blocks_q();
          sweep_queries(item / blocks_q, block / sizes.blocks_q(), block_q, scratch, false);
        });
      }
    }
    shared_workspace().trim();
  }

 private:
  Sizes sizes{query, key, value};
  std::vector<PackedHead<E>> packed;
  int64_t first_head = 0;

  static bool one_sweep_is_faster(int64_t heads) {
    constexpr int64_t kProductsInOneSweep = 5, kProductsInTwo = 7;
    int64_t threads = available_threads();
    return kProductsInOneSweep * round_up(heads, threads) <= kProductsInTwo * heads;
  }

  int64_t batch_of(int64_t head) const { return (first_head + head) / sizes.kv_heads; }
  int64_t kv_head_of(int64_t head) const { return (first_head + head) % sizes.kv_heads; }

  BackwardScratch<E> make_scratch(int64_t keys) {
    auto scratch = cut<BackwardScratch<E>>(private_workspace(), sizes, dropout.active, keys);
    std::fill_n(scratch.ones, kBlockQ, A(1));
    std::fill_n(scratch.grad_key, keys * round_up(sizes.head_dim, kPanel<E>), A(0));
    std::fill_n(scratch.grad_value, keys * round_up(sizes.value_dim, kPanel<E>), A(0));
    return scratch;
  }

  void pack_keys(int64_t head, int64_t block) {
    int64_t row = block * kBlockK, rows = std::min(kBlockK, sizes.padded_k() - row);
    int64_t real_rows = std::min(rows, sizes.len_k - row);
    auto keys = matrix<T>(key, batch_of(head), kv_head_of(head)).rows_from(row, real_rows);
    auto values = matrix<T>(value, batch_of(head), kv_head_of(head)).rows_from(row, real_rows);
    pack_row_panels<E>(keys, row, rows, sizes.padded_k(), packed[head].key);
    pack_row_panels<E>(values, row, rows, sizes.padded_k(), packed[head].value);
    if constexpr (kDepth<E> == 2) pack_depth_panels<E>(keys, row, rows, sizes.padded_k(), packed[head].key_depth);
  }

  void pack_queries(int64_t head, int64_t g, int64_t block) {
    PackedQueries<E>& target = packed[head].queries[g];
    int64_t b = batch_of(head), h = kv_head_of(head) * sizes.group() + g;
    int64_t row = block * kBlockQ, rows = std::min(kBlockQ, sizes.padded_q() - row);
    int64_t real_rows = std::min(rows, sizes.len_q - row);
    auto queries = matrix<T>(query, b, h).rows_from(row, real_rows);
    auto grads = matrix<T>(grad_output, b, h).rows_from(row, real_rows);
    pack_transposed_panels<E>(queries,
                              target.query_transposed + block * transposed_panels_size<E>(kBlockQ, sizes.head_dim));
    pack_transposed_panels<E>(
        grads, target.grad_output_transposed + block * transposed_panels_size<E>(kBlockQ, sizes.value_dim));
    pack_depth_panels<E>(queries, row, rows, sizes.padded_q(), target.query);
    pack_depth_panels<E>(grads, row, rows, sizes.padded_q(), target.grad_output);
    auto rows_of = [&](const Tensor& tensor) {
      const A* data = tensor.as<const A>();
      return data + b * tensor.strides[0] + h * tensor.strides[1] + row * tensor.strides[2];
    };
    prepare_rows(grads, matrix<T>(output, b, h).rows_from(row, real_rows), rows_of(lse), lse.strides[2],
                 grad_lse.defined() ? rows_of(grad_lse) : nullptr, grad_lse.strides[2], row, target);
  }

  Tile tile_at(int64_t head, int64_t g, int64_t block_q) const {
    int64_t b = batch_of(head), h = kv_head_of(head) * sizes.group() + g, q0 = block_q * kBlockQ;
    return {b, h, q0, std::min(kBlockQ, sizes.len_q - q0), 0, 0, window, slope_of(alibi_slopes, b, h)};
  }

  // grad_query of one block of queries; on the way, with_keys, its part of grad_key and grad_value.
  void sweep_queries(int64_t head, int64_t g, int64_t block_q, const BackwardScratch<E>& scratch, bool with_keys) {
    Tile tile = tile_at(head, g, block_q);
    int64_t row_size = round_up(sizes.head_dim, kPanel<E>), k_begin = tile.window.first_key(tile.q0),
            k_end = tile.window.end_key(tile.q0 + tile.queries, sizes.len_k);
    std::fill_n(scratch.grad_query, kBlockQ * row_size, A(0));
    for (tile.k0 = k_begin; tile.k0 < k_end; tile.k0 += kBlockK) {
      tile.keys = std::min(kBlockK, k_end - tile.k0);
      differentiate_tile<E>(tile, sizes, packed[head], packed[head].queries[g], attn_mask, dropout, A(scale),
                            needs_mask_grad, scratch);
      if (needs_mask_grad) store_mask_gradient(tile, scratch.grad_scores);
      accumulate_over_keys<E>(tile, scratch.grad_scores_by_key, packed[head].key_depth, sizes.padded_k(),
                              sizes.head_dim, scratch.ones, scratch.grad_query);
      if (with_keys) accumulate_key_gradients(tile, packed[head].queries[g], tile.k0, scratch);
    }
    if (needs_mask_grad) clear_mask_gradient(tile, k_begin, k_end);
    store_scaled(scratch.grad_query, tile.queries, sizes.head_dim, row_size, A(scale),
                 row_of<T>(grad_query, tile.b, tile.h, tile.q0), grad_query.strides[2]);
  }

  // grad_key and grad_value of one block of keys.
  void sweep_keys(int64_t head, int64_t block_k) {
    auto scratch = make_scratch(kBlockK);
    int64_t k0 = block_k * kBlockK;
    for (int64_t g = 0; g < sizes.group(); ++g)
      for (int64_t block_q = std::max<int64_t>(0, k0 - window.right) / kBlockQ; block_q < sizes.blocks_q(); ++block_q) {
        Tile tile = tile_at(head, g, block_q);
        if (tile.q0 > k0 + kBlockK - 1 + window.left) break;
        tile.k0 = k0;
        tile.keys = std::min(kBlockK, window.end_key(tile.q0 + tile.queries, sizes.len_k) - k0);
        if (tile.keys <= 0) continue;
        differentiate_tile<E>(tile, sizes, packed[head], packed[head].queries[g], attn_mask, dropout, A(scale), false,
                              scratch);
        accumulate_key_gradients(tile, packed[head].queries[g], 0, scratch);
      }
    store_key_gradients(head, k0, std::min(kBlockK, sizes.len_k - k0), scratch);
  }

  // All gradients of one kv head.
  void sweep_head(int64_t head) {
    auto scratch = make_scratch(sizes.padded_k());
    for (int64_t g = 0; g < sizes.group(); ++g)
      for (int64_t block_q = 0; block_q < sizes.blocks_q(); ++block_q) sweep_queries(head, g, block_q, scratch, true);
    store_key_gradients(head, 0, sizes.len_k, scratch);
  }

  // scratch.grad_key and scratch.grad_value hold the keys from `key_row` of the tile's first key on.
  void accumulate_key_gradients(const Tile& tile, const PackedQueries<E>& queries, int64_t key_row,
                                const BackwardScratch<E>& scratch) {
    accumulate_over_queries<E>(tile, scratch.weights_by_query, queries.grad_output, sizes.padded_q(), sizes.value_dim,
                               scratch.grad_value + key_row * round_up(sizes.value_dim, kPanel<E>));
    accumulate_over_queries<E>(tile, scratch.grad_scores_by_query, queries.query, sizes.padded_q(), sizes.head_dim,
                               scratch.grad_key + key_row * round_up(sizes.head_dim, kPanel<E>));
  }

  void store_key_gradients(int64_t head, int64_t k0, int64_t keys, const BackwardScratch<E>& scratch) {
    int64_t b = batch_of(head), h = kv_head_of(head);
    store_scaled(scratch.grad_key, keys, sizes.head_dim, round_up(sizes.head_dim, kPanel<E>), A(scale),
                 row_of<T>(grad_key, b, h, k0), grad_key.strides[2]);
    store_scaled(scratch.grad_value, keys, sizes.value_dim, round_up(sizes.value_dim, kPanel<E>), A(1),
                 row_of<T>(grad_value, b, h, k0), grad_value.strides[2]);
  }

  // Calls body(pointer to the tile's first row in grad_attn_mask).
  template <class Body>
  void with_mask_rows(const Tile& tile, const Body& body) {
    dispatch_floating(grad_attn_mask.dtype, "attention_backward: grad_attn_mask", [&](auto tag) {
      using M = typename decltype(tag)::type;
      if constexpr (std::is_same_v<acc_t<M>, A>)
        body(grad_attn_mask.as<M>() + ((tile.b * sizes.heads + tile.h) * sizes.len_q + tile.q0) * sizes.len_k);
    });
  }
  void store_mask_gradient(const Tile& tile, const A* grad_scores) {
    with_mask_rows(tile, [&](auto* rows) { store_grad_mask(tile, grad_scores, sizes.len_k, rows); });
  }
  // What lies outside of keys [k_begin, k_end).
  void clear_mask_gradient(const Tile& tile, int64_t k_begin, int64_t k_end) {
    with_mask_rows(tile, [&](auto* rows) {
      std::decay_t<decltype(*rows)> zero{};
      for (int64_t q = 0; q < tile.queries; ++q, rows += sizes.len_k) {
        std::fill(rows, rows + std::min(k_begin, sizes.len_k), zero);
        std::fill(rows + std::max(k_begin, k_end), rows + std::max(k_begin, sizes.len_k), zero);
      }
    });
  }
};

}  // namespace

void attention_backward(const Tensor& grad_output, const Tensor& grad_lse, const Tensor& query, const Tensor& key,
                        const Tensor& value, const Tensor& attn_mask, const Tensor& output, const Tensor& lse,
                        const Tensor& rng_state, double dropout_p, bool is_causal, double scale,
                        const Tensor& alibi_slopes, int64_t window_left, int64_t window_right, bool needs_mask_grad,
                        const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value,
                        const Tensor& grad_attn_mask) {
  Arguments arguments{grad_output,
                      grad_lse,
                      query,
                      key,
                      value,
                      attn_mask,
                      output,
                      lse,
                      Dropout(rng_state, dropout_p, query.sizes[1]),
                      scale,
                      alibi_slopes,
                      Window(is_causal, window_left, window_right),
                      needs_mask_grad,
                      grad_query,
                      grad_key,
                      grad_value,
                      grad_attn_mask};
  dispatch_floating(query.dtype, "attention_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_elements<T>([&](auto element) { Backward<T, typename decltype(element)::type>(arguments).run(); });
  });
}

}  // namespace bigkern
