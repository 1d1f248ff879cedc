// One tile of attention's backward: its weights again from the saved lse, the gradients of its scores, and the sums
// that they enter.
#pragma once

#include "attention.h"

namespace bigkern::attention {

// One query head.
template <class E, class A = acc_t<E>>
struct PackedQueries {
  E *query_transposed, *grad_output_transposed;  // of one block of queries after the other
  E *query, *grad_output;                        // depth panels
  A *lse, *delta, *grad_lse;

  PackedQueries(Cutter& cutter, const Sizes& sizes)
      : query_transposed(cutter.take<E>(sizes.blocks_q() * transposed_panels_size<E>(kBlockQ, sizes.head_dim))),
        grad_output_transposed(cutter.take<E>(sizes.blocks_q() * transposed_panels_size<E>(kBlockQ, sizes.value_dim))),
        query(cutter.take<E>(depth_panels_size<E>(sizes.padded_q(), sizes.head_dim))),
        grad_output(cutter.take<E>(depth_panels_size<E>(sizes.padded_q(), sizes.value_dim))),
        lse(cutter.take<A>(sizes.blocks_q() * kBlockQ)),
        delta(cutter.take<A>(sizes.blocks_q() * kBlockQ)),
        grad_lse(cutter.take<A>(sizes.blocks_q() * kBlockQ)) {}
};

// One kv head and the query heads that share it.
template <class E>
struct PackedHead {
  E *key, *value;  // row panels
  E* key_depth;    // depth panels
  std::vector<PackedQueries<E>> queries;

  PackedHead(Cutter& cutter, const Sizes& sizes)
      : key(cutter.take<E>(row_panels_size<E>(sizes.padded_k(), sizes.head_dim))),
        value(cutter.take<E>(row_panels_size<E>(sizes.padded_k(), sizes.value_dim))),
        key_depth(cutter.take<E>(kDepth<E> == 1 ? 0 : depth_panels_size<E>(sizes.padded_k(), sizes.head_dim))) {
    if constexpr (kDepth<E> == 1) key_depth = key;
    for (int64_t g = 0; g < sizes.group(); ++g) queries.emplace_back(cutter, sizes);
  }
};

// What one thread needs: one tile, and the gradients that it sums.
template <class E, class A = acc_t<E>>
struct BackwardScratch {
  A *weights, *grad_scores, *factors;
  // The same two as operands: neighbours along queries in one element, and along keys.
  E *weights_by_query, *grad_scores_by_query, *grad_scores_by_key;
  A *grad_query, *grad_key, *grad_value;
  A* ones;

  BackwardScratch(Cutter& cutter, const Sizes& sizes, bool dropout, int64_t keys)
      : weights(cutter.take<A>(kBlockK * kBlockQ)),
        grad_scores(cutter.take<A>(kBlockK * kBlockQ)),
        factors(cutter.take<A>(dropout ? kBlockK * kBlockQ : 0)),
        grad_query(cutter.take<A>(kBlockQ * round_up(sizes.head_dim, kPanel<E>))),
        grad_key(cutter.take<A>(keys * round_up(sizes.head_dim, kPanel<E>))),
        grad_value(cutter.take<A>(keys * round_up(sizes.value_dim, kPanel<E>))),
        ones(cutter.take<A>(kBlockQ)) {
    if constexpr (kDepth<E> == 1) {
      weights_by_query = weights;
      grad_scores_by_query = grad_scores_by_key = grad_scores;
    } else {
      weights_by_query = cutter.take<E>(kBlockK * kBlockQ / 2);
      grad_scores_by_query = cutter.take<E>(kBlockK * kBlockQ / 2);
      grad_scores_by_key = cutter.take<E>(kBlockK * kBlockQ / 2);
    }
  }
};

// sums[key][:] += sum over queries of weights[key][query] * b[q0 + query][:]. `weights` pair queries, `b`: depth panels
// of all queries with `cols` columns.
template <class E, class A = acc_t<E>>
void accumulate_over_queries(const Tile& tile, const E* weights, const E* b, int64_t padded_q, int64_t cols, A* sums) {
  constexpr int64_t kLanes = lanes<A>, kRowSize = kBlockQ / kDepth<E>;
  int64_t row_size = round_up(cols, kPanel<E>);
  over_columns<E>(cols, [=](auto vectors, int64_t col) {
    constexpr int kVectors = decltype(vectors)::value;
    const E* panel = b + col * (padded_q / kDepth<E>)+tile.q0 / kDepth<E> * kPanel<E>;
    for (int64_t key = 0; key < tile.keys; key += kTileRows) {
      vec<A> products[kTileRows][kVectors] = {};
      int64_t first = tile.first_query_seeing(key) / kDepth<E>;
      int64_t end = ceil_div(tile.queries_seeing(key + kTileRows), kDepth<E>);
      multiply_tile<E, kVectors, kRowSize, 1>(weights + key * kRowSize + first, panel + first * kPanel<E>, end - first,
                                              products);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        A* row = sums + (key + r) * row_size + col;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) store(row + v * kLanes, load(row + v * kLanes) + products[r][v]);
      }
    }
  });
}

// For one vector of queries whose keys all lie in this tile: scores become weights, and delta is what these weights
// say. Then the rounding of grad_output V^T cancels where one key has most of the weight, which it does not against
// rowsum(grad_output * output).
template <class E, class A = acc_t<E>>
vec<A> delta_of_whole_rows(const Tile& tile, int64_t i, vec<A> lse, bool dropout, const BackwardScratch<E>& scratch) {
  vec<A> total = {}, sum = {};
  for (int64_t key = 0; key < tile.keys; ++key) {
    int64_t at = key * kBlockQ + i;
    vec<A> weight = exp_of_shifted(load(scratch.weights + at) - lse);
    store(scratch.weights + at, weight);
    vec<A> product = weight * load(scratch.grad_scores + at);
    if (dropout) product *= load(scratch.factors + at);
    total += weight;
    // Where a window hides part of a tile nobody has written the gradient of its weights.
    sum += select(weight == A(0), vec<A>{}, product);
  }
  // The weights carry the rounding of lse, and do not sum to 1.
  return select(total == A(0), vec<A>{}, sum / total);
}

// For one vector of queries: scores become weights, gradients of weights become gradients of scores, and both become
// operands.
template <class E, class A = acc_t<E>>
void differentiate_softmax(const Tile& tile, int64_t i, bool whole_rows, const PackedQueries<E>& queries, bool dropout,
                           bool keep_grad_scores, const BackwardScratch<E>& scratch) {
  bool partly_hidden = tile.has_hidden_keys();
  vec<A> lse = load(queries.lse + tile.q0 + i), delta = load(queries.delta + tile.q0 + i);
  if (whole_rows) delta = delta_of_whole_rows<E>(tile, i, lse, dropout, scratch) - load(queries.grad_lse + tile.q0 + i);
  auto differentiate = [&](int64_t key, vec<A>& weight, vec<A>& grad_score) {
    int64_t at = key * kBlockQ + i;
    weight = load(scratch.weights + at);
    if (!whole_rows) weight = exp_of_shifted(weight - lse);
    vec<A> grad_weight = load(scratch.grad_scores + at);
    if (dropout) grad_weight *= load(scratch.factors + at);
    grad_score = weight * (grad_weight - delta);
    // Where a window hides part of a tile nobody has written the gradient of its weights.
    if (partly_hidden) grad_score = select(weight == A(0), vec<A>{}, grad_score);
    if (dropout) weight *= load(scratch.factors + at);
  };
  // The last rows of a register tile may belong to keys that only later queries see: they must add nothing.
  int64_t rows = round_up(tile.keys, kTileRows);
  if constexpr (kDepth<E> == 1) {
    for (int64_t key = tile.keys; key < rows; ++key) {
      store(scratch.weights + key * kBlockQ + i, vec<A>{});
      store(scratch.grad_scores + key * kBlockQ + i, vec<A>{});
    }
    for (int64_t key = 0; key < tile.keys; ++key) {
      vec<A> weight, grad_score;
      differentiate(key, weight, grad_score);
      store(scratch.weights + key * kBlockQ + i, weight);
      store(scratch.grad_scores + key * kBlockQ + i, grad_score);
    }
  } else {
    auto* weights = reinterpret_cast<bfloat16*>(scratch.weights_by_query);
    auto* grad_scores = reinterpret_cast<bfloat16*>(scratch.grad_scores_by_query);
    for (int64_t key = tile.keys; key < rows; ++key) {
      store(weights + key * kBlockQ + i, vec<A>{});
      store(grad_scores + key * kBlockQ + i, vec<A>{});
    }
    for (int64_t key = 0; key < tile.keys; key += 2) {
      vec<A> pair[2] = {};
      for (int64_t k = 0; k < std::min<int64_t>(2, tile.keys - key); ++k) {
        vec<A> weight;
        differentiate(key + k, weight, pair[k]);
        store(weights + (key + k) * kBlockQ + i, weight);
        store(grad_scores + (key + k) * kBlockQ + i, pair[k]);
        if (keep_grad_scores) store(scratch.grad_scores + (key + k) * kBlockQ + i, pair[k]);
      }
      store_elements(scratch.grad_scores_by_key + key / 2 * kBlockQ + i, pair_up(pair[0], pair[1]));
    }
  }
}

// Fills the operands of scratch for one tile.
template <class E, class A = acc_t<E>>
void differentiate_tile(const Tile& tile, const Sizes& sizes, const PackedHead<E>& packed,
                        const PackedQueries<E>& queries, const Tensor& attn_mask, const Dropout& dropout, A scale,
                        bool keep_grad_scores, const BackwardScratch<E>& scratch) {
  int64_t block = tile.q0 / kBlockQ;
  const E* query = queries.query_transposed + block * transposed_panels_size<E>(kBlockQ, sizes.head_dim);
  const E* grad_output = queries.grad_output_transposed + block * transposed_panels_size<E>(kBlockQ, sizes.value_dim);
  multiply_keys_by_queries<E>(tile, packed.key, sizes.padded_k(), query, ceil_div(sizes.head_dim, kDepth<E>), scale,
                              scratch.weights);
  multiply_keys_by_queries<E>(tile, packed.value, sizes.padded_k(), grad_output, ceil_div(sizes.value_dim, kDepth<E>),
                              A(1), scratch.grad_scores);
  apply_mask(tile, attn_mask, scratch.weights);
  if (dropout.active) dropout_factors(tile, dropout, scratch.factors);
  bool whole_rows = tile.has_all_keys(sizes.len_k);
  over_query_vectors<A>(tile, [&](int64_t i) {
    differentiate_softmax<E>(tile, i, whole_rows, queries, dropout.active, keep_grad_scores, scratch);
  });
}

// sums[lane] = rowsum(a * b) of row `row + lane`, added up column by column as multiply_tile does: where a query sees
// one key alone, this is its grad_output V^T to the last bit.
template <class T, class A = acc_t<T>>
vec<A> products_of_rows(const MatrixView<const T>& a, const MatrixView<const T>& b, int64_t row) {
  constexpr int kLanes = lanes<A>;
  vec<A> sums = {};
  for (int64_t col = 0; col < a.cols; col += kLanes) {
    vec<A> a_block[kLanes], b_block[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      a_block[lane] = load_row(a, row + lane, col);
      b_block[lane] = load_row(b, row + lane, col);
    }
    transpose(a_block);
    transpose(b_block);
    int64_t count = std::min<int64_t>(kLanes, a.cols - col);
    for (int64_t k = 0; k < count; ++k) sums += a_block[k] * b_block[k];
  }
  return sums;
}

// Rows of one query head, of which one without visible keys has weights and gradients of 0.
template <class T, class E, class A = acc_t<T>>
void prepare_rows(const MatrixView<const T>& grad_output, const MatrixView<const T>& output, const A* lse,
                  int64_t lse_stride, const A* grad_lse, int64_t grad_lse_stride, int64_t first_row,
                  const PackedQueries<E>& target) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  for (int64_t first = 0; first < kBlockQ; first += lanes<A>) {
    vec<A> products = products_of_rows(grad_output, output, first);
    for (int lane = 0; lane < lanes<A>; ++lane) {
      int64_t row = first + lane;
      A row_lse = row < output.rows ? lse[row * lse_stride] : kInfinity;
      bool sees_keys = std::abs(row_lse) != kInfinity;
      A row_grad_lse = sees_keys && grad_lse ? grad_lse[row * grad_lse_stride] : A(0);
      target.lse[first_row + row] = sees_keys ? row_lse : kInfinity;
      target.delta[first_row + row] = sees_keys ? products[lane] - row_grad_lse : A(0);
      target.grad_lse[first_row + row] = row_grad_lse;
    }
  }
}

template <class T, class A = acc_t<T>>
void store_scaled(const A* sums, int64_t rows, int64_t cols, int64_t row_size, A factor, T* target,
                  int64_t target_stride) {
  for (int64_t row = 0; row < rows; ++row, sums += row_size, target += target_stride) {
    int64_t col = 0;
    for (; col + lanes<A> <= cols; col += lanes<A>) store(target + col, load(sums + col) * factor);
    if (col < cols) store_partial(target + col, load(sums + col) * factor, cols - col);
  }
}

// grad_scores [key][query] to grad_attn_mask [query][key].
template <class M, class A>
void store_grad_mask(const Tile& tile, const A* grad_scores, int64_t len_k, M* grad_mask) {
  constexpr int kLanes = lanes<A>;
  over_query_vectors<A>(tile, [&](int64_t i) {
    for (int64_t key = 0; key < tile.keys; key += kLanes) {
      vec<A> block[kLanes];
      int64_t keys = std::min<int64_t>(kLanes, tile.keys - key);
      for (int64_t k = 0; k < kLanes; ++k) block[k] = k < keys ? load(grad_scores + (key + k) * kBlockQ + i) : vec<A>{};
      transpose(block);
      for (int64_t q = 0; q < std::min<int64_t>(kLanes, tile.queries - i); ++q)
        store_partial(grad_mask + (i + q) * len_k + tile.k0 + key, block[q], keys);
    }
  });
}

}  // namespace bigkern::attention
