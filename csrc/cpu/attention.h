// What the forward and the backward of attention share: tiles of scores, their mask, exp and dropout.
//
// A tile is transposed, [key][query] with kBlockQ queries a row: one lane is one query, so that the softmax over keys,
// the causal bound and Philox's groups of four keys need no work across lanes.
#pragma once

#include <cmath>
#include <limits>

#include "cutter.h"
#include "dtype.h"
#include "parallel.h"
#include "philox.h"
#include "tile_pack.h"

namespace bigkern::attention {

#if defined(__AVX512F__)
constexpr int64_t kBlockQ = 64;
constexpr int64_t kBlockK = 128;
#else
constexpr int64_t kBlockQ = 48;
constexpr int64_t kBlockK = 96;
#endif
static_assert(kBlockQ % kTileRows == 0 && kBlockQ % kPanel<float> == 0);
static_assert(kBlockK % kTileRows == 0 && kBlockK % 4 == 0 && kTileRows % 2 == 0);

struct Sizes {
  int64_t batch, heads, kv_heads, len_q, len_k, head_dim, value_dim;

  Sizes(const Tensor& query, const Tensor& key, const Tensor& value)
      : batch(query.sizes[0]),
        heads(query.sizes[1]),
        kv_heads(key.sizes[1]),
        len_q(query.sizes[2]),
        len_k(key.sizes[2]),
        head_dim(query.sizes[3]),
        value_dim(value.sizes[3]) {}

  int64_t group() const { return kv_heads ? heads / kv_heads : 0; }
  int64_t blocks_q() const { return ceil_div(len_q, kBlockQ); }
  int64_t blocks_k() const { return ceil_div(len_k, kBlockK); }
  int64_t padded_q() const { return round_up(len_q, kTileRows); }
  int64_t padded_k() const { return round_up(len_k, kTileRows); }
};

// Which keys a query sees by its place: those from query - left to query + right.
struct Window {
  static constexpr int64_t kUnlimited = int64_t{1} << 48;
  int64_t left = kUnlimited, right = kUnlimited;

  // A negative bound is none.
  Window(bool is_causal, int64_t left_or_none, int64_t right_or_none) {
    if (left_or_none >= 0) left = std::min(left_or_none, kUnlimited);
    if (right_or_none >= 0) right = std::min(right_or_none, kUnlimited);
    if (is_causal) right = 0;
  }
  bool is_unlimited() const { return left == kUnlimited && right == kUnlimited; }

  // Keys [first_key, end_key) are visible to some query of [q_begin, q_end).
  int64_t first_key(int64_t q_begin) const {
    constexpr int64_t kStep = kTileRows % 4 == 0 ? kTileRows : 2 * kTileRows;  // Philox draws for four keys at once
    return std::max<int64_t>(0, q_begin - left) / kStep * kStep;
  }
  int64_t end_key(int64_t q_end, int64_t len_k) const { return std::min(len_k, q_end + right); }
};

// ALiBi's slope of one head; 0 where there is none.
inline double slope_of(const Tensor& slopes, int64_t b, int64_t h) {
  if (!slopes.defined()) return 0;
  int64_t at = b * slopes.strides[0] + h * slopes.strides[1];
  return slopes.dtype == DType::float64 ? slopes.as<const double>()[at] : slopes.as<const float>()[at];
}

// [rows, cols] of tensor[batch, head]; an absent tensor gives an empty view.
template <class T>
MatrixView<const T> matrix(const Tensor& tensor, int64_t b, int64_t h) {
  if (!tensor.defined()) return {};
  return {tensor.as<const T>() + b * tensor.strides[0] + h * tensor.strides[1], tensor.sizes[2], tensor.sizes[3],
          tensor.strides[2], tensor.strides[3]};
}

// Where row i of tensor[batch, head] starts; its elements lie side by side.
template <class T>
T* row_of(const Tensor& tensor, int64_t b, int64_t h, int64_t i) {
  return tensor.as<T>() + b * tensor.strides[0] + h * tensor.strides[1] + i * tensor.strides[2];
}

// A piece of the score matrix of one (batch, head): queries [q0, q0 + queries) and keys [k0, k0 + keys).
struct Tile {
  int64_t b, h;
  int64_t q0, queries;
  int64_t k0, keys;
  Window window;
  double slope;

  // Keys of the tile from this one on are hidden from its first so many queries.
  int64_t keys_visible_to(int64_t first_queries) const {
    return std::clamp<int64_t>(q0 + first_queries + window.right - k0, 0, keys);
  }
  // Keys of the tile before this one are hidden from its queries from `query` on.
  int64_t first_key_visible_from(int64_t query) const {
    return std::clamp<int64_t>(q0 + query - window.left - k0, 0, keys);
  }
  // Queries before this one see none of the tile's keys from `key` on.
  int64_t first_query_seeing(int64_t key) const {
    return std::clamp<int64_t>(k0 + key - window.right - q0, 0, queries);
  }
  // Queries from this one on see none of the tile's first so many keys.
  int64_t queries_seeing(int64_t first_keys) const {
    return std::clamp<int64_t>(k0 + first_keys + window.left - q0, 0, queries);
  }
  bool hides_future_keys() const { return k0 + keys - 1 > q0 + window.right; }
  bool hides_past_keys() const { return k0 < q0 + queries - 1 - window.left; }
  bool has_hidden_keys() const { return hides_future_keys() || hides_past_keys(); }
  // True where its queries see no key outside of it.
  bool has_all_keys(int64_t len_k) const {
    return k0 <= std::max<int64_t>(0, q0 - window.left) && window.end_key(q0 + queries, len_k) <= k0 + keys;
  }
};

// Runs body(i) over all vectors of queries of one row.
template <class A, class Body>
BIGKERN_ALWAYS_INLINE void over_query_vectors(const Tile& tile, const Body& body) {
  for (int64_t i = 0; i < tile.queries; i += lanes<A>) body(i);
}

// Packed operands of as many (batch, kv head) pairs as fit the threads' caches are made at once, then used by all.
struct HeadWaves {
  int64_t heads, size;

  HeadWaves(int64_t heads, size_t bytes_per_head) : heads(heads) {
    constexpr size_t kCacheBytes = size_t{512} << 10;
    int64_t heads_per_thread = static_cast<int64_t>(kCacheBytes / std::max<size_t>(1, bytes_per_head));
    size = std::min(heads, available_threads() * std::max<int64_t>(1, heads_per_thread));
  }
};

// Calls body(TypeTag<E>{}) with the elements in which matrices of T are multiplied here.
template <class T, class Body>
void dispatch_elements(const Body& body) {
  if constexpr (std::is_same_v<T, bfloat16> && BIGKERN_BFLOAT16_PAIRS)
    if (processor_multiplies_bfloat16_pairs()) return body(TypeTag<bfloat16_pair>{});
  body(TypeTag<acc_t<T>>{});
}

// ---- products -----------------------------------------------------------------------------------------------------

// target[key][query] = factor * sum_d a[key][d] * b[d][query]. `a`: row panels of all keys (or values), `b`: transposed
// panels of the tile's queries, each of `depth` elements. Parts of the tile that are hidden as a whole are not written.
template <class E, class A = acc_t<E>>
void multiply_keys_by_queries(const Tile& tile, const E* a, int64_t padded_k, const E* b, int64_t depth, A factor,
                              A* target) {
  constexpr int kLanes = lanes<A>;
  over_columns<E>(tile.queries, [=](auto vectors, int64_t col) {
    constexpr int kVectors = decltype(vectors)::value;
    int64_t keys = tile.keys_visible_to(col + kPanel<E>);
    for (int64_t key = tile.first_key_visible_from(col) / kTileRows * kTileRows; key < keys; key += kTileRows) {
      vec<A> sums[kTileRows][kVectors] = {};
      for (int64_t first = 0; first < depth; first += kPanel<E>)
        multiply_tile<E, kVectors, kPanel<E>, 1>(a + first * padded_k + (tile.k0 + key) * kPanel<E>,
                                                 b + col * depth + first * kPanel<E>,
                                                 std::min<int64_t>(kPanel<E>, depth - first), sums);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) store(target + (key + r) * kBlockQ + col + v * kLanes, sums[r][v] * factor);
    }
  });
}

// sums[query][:] = sums[query][:] * rescale[query] + sum over keys of weights[key][query] * b[k0 + key][:]. `weights`
// pair keys, `b`: depth panels of all keys with `cols` columns; a row of sums has round_up(cols, kPanel) values.
template <class E, class A = acc_t<E>>
void accumulate_over_keys(const Tile& tile, const E* weights, const E* b, int64_t padded_k, int64_t cols,
                          const A* rescale, A* sums) {
  constexpr int kLanes = lanes<A>;
  int64_t row_size = round_up(cols, kPanel<E>);
  over_columns<E>(cols, [=](auto vectors, int64_t col) {
    constexpr int kVectors = decltype(vectors)::value;
    const E* panel = b + col * (padded_k / kDepth<E>)+tile.k0 / kDepth<E> * kPanel<E>;
    for (int64_t query = 0; query < tile.queries; query += kTileRows) {
      vec<A> products[kTileRows][kVectors] = {};
      int64_t first = tile.first_key_visible_from(query) / kDepth<E>;
      int64_t end = ceil_div(tile.keys_visible_to(query + kTileRows), kDepth<E>);
      multiply_tile<E, kVectors, 1, kBlockQ>(weights + first * kBlockQ + query, panel + first * kPanel<E>, end - first,
                                             products);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        A* row = sums + (query + r) * row_size + col;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          store(row + v * kLanes, load(row + v * kLanes) * rescale[query + r] + products[r][v]);
      }
    }
  });
}

// ---- mask, dropout, exp -------------------------------------------------------------------------------------------

template <class M, class A>
inline vec<A> load_mask(const MatrixView<const M>& mask, int64_t query, int64_t key, int64_t count) {
  if constexpr (std::is_same_v<M, uint8_t>) {
    vec<A> values = {};
    if (query < mask.rows)
      for (int64_t lane = 0; lane < count; ++lane)
        values[lane] = *mask.at(query, key + lane) ? A(0) : -std::numeric_limits<A>::infinity();
    return values;
  } else {
    return load_row(mask, query, key);
  }
}

template <class M, class A>
BIGKERN_ALWAYS_INLINE void include_mask(A* score, vec<A> mask) {
  vec<A> s = load(score);
  // A hidden key's score may be NaN or infinite; a bool mask hides that, too.
  if constexpr (std::is_same_v<M, uint8_t>)
    store(score, select(mask < A(0), mask, s));
  else
    store(score, s + mask);
}

template <class M, class A>
void apply_mask_typed(const Tile& tile, const MatrixView<const M>& mask, A* scores) {
  constexpr int kLanes = lanes<A>;
  for (int64_t key = 0; key < tile.keys; key += kLanes) {
    int64_t count = std::min<int64_t>(kLanes, tile.keys - key);
    if (mask.row_stride == 0) {  // one row for all queries: a padding mask
      vec<A> values = load_mask<M, A>(mask, tile.q0, tile.k0 + key, count);
      for (int64_t k = 0; k < count; ++k)
        over_query_vectors<A>(
            tile, [&](int64_t i) { include_mask<M, A>(scores + (key + k) * kBlockQ + i, broadcast(A(values[k]))); });
      continue;
    }
    over_query_vectors<A>(tile, [&](int64_t i) {
      vec<A> block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane)
        block[lane] = load_mask<M, A>(mask, tile.q0 + i + lane, tile.k0 + key, count);
      transpose(block);
      for (int64_t k = 0; k < count; ++k) include_mask<M, A>(scores + (key + k) * kBlockQ + i, block[k]);
    });
  }
}

template <class A>
using lane_index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

template <class A>
vec<lane_index<A>> lane_indices() {
  vec<lane_index<A>> indices;
  for (int lane = 0; lane < lanes<A>; ++lane) indices[lane] = lane;
  return indices;
}

template <class A>
void hide_future_keys(const Tile& tile, A* scores) {
  auto queries = lane_indices<A>();
  vec<A> hidden = broadcast(-std::numeric_limits<A>::infinity());
  for (int64_t key = tile.keys_visible_to(1); key < tile.keys; ++key)
    over_query_vectors<A>(tile, [&](int64_t i) {
      A* score = scores + key * kBlockQ + i;
      auto first_query = static_cast<lane_index<A>>(tile.k0 + key - tile.window.right - tile.q0 - i);
      store(score, select(queries < first_query, hidden, load(score)));
    });
}

template <class A>
void hide_past_keys(const Tile& tile, A* scores) {
  auto queries = lane_indices<A>();
  vec<A> hidden = broadcast(-std::numeric_limits<A>::infinity());
  for (int64_t key = 0; key < tile.first_key_visible_from(tile.queries - 1); ++key)
    over_query_vectors<A>(tile, [&](int64_t i) {
      A* score = scores + key * kBlockQ + i;
      auto last_query = static_cast<lane_index<A>>(tile.k0 + key + tile.window.left - tile.q0 - i);
      store(score, select(queries > last_query, hidden, load(score)));
    });
}

// score -= slope * |query - key|
template <class A>
void apply_alibi(const Tile& tile, A* scores) {
  A slope = static_cast<A>(tile.slope);
  vec<A> queries;
  for (int lane = 0; lane < lanes<A>; ++lane) queries[lane] = static_cast<A>(lane);
  for (int64_t key = 0; key < tile.keys; ++key)
    over_query_vectors<A>(tile, [&](int64_t i) {
      A* score = scores + key * kBlockQ + i;
      vec<A> distance = queries + static_cast<A>(tile.q0 + i - tile.k0 - key);
      store(score, load(score) - maximum(distance, -distance) * slope);
    });
}

// Adds attn_mask and ALiBi to the scores and hides what the window hides.
template <class A>
void apply_mask(const Tile& tile, const Tensor& mask, A* scores) {
  if (mask.defined() && mask.dtype == DType::boolean)
    apply_mask_typed(tile, matrix<uint8_t>(mask, tile.b, tile.h), scores);
  else if (mask.defined())
    dispatch_floating(mask.dtype, "attention: attn_mask", [&](auto tag) {
      using M = typename decltype(tag)::type;
      if constexpr (std::is_same_v<acc_t<M>, A>) apply_mask_typed(tile, matrix<M>(mask, tile.b, tile.h), scores);
    });
  if (tile.slope != 0) apply_alibi(tile, scores);
  if (tile.hides_future_keys()) hide_future_keys(tile, scores);
  if (tile.hides_past_keys()) hide_past_keys(tile, scores);
}

struct Dropout {
  bool active = false;
  PhiloxKey key{0};
  uint32_t offset = 0, threshold = 0;
  double keep_scale = 1;
  int64_t heads = 0;

  Dropout(const Tensor& rng_state, double dropout_p, int64_t heads) : heads(heads) {
    if (dropout_p <= 0 || !rng_state.defined()) return;
    const int64_t* state = rng_state.as<int64_t>();
    active = true;
    key = PhiloxKey(state[0]);
    offset = static_cast<uint32_t>(static_cast<uint64_t>(state[rng_state.strides[0]]));
    threshold = static_cast<uint32_t>(dropout_p * 0x1p32);
    keep_scale = 1 / (1 - dropout_p);
  }
};

// factors[key][query]: what dropout multiplies a probability with, 0 or 1 / (1 - dropout_p).
template <class A>
void dropout_factors(const Tile& tile, const Dropout& dropout, A* factors) {
  for (int64_t key = 0; key < tile.keys; key += 4)
    for (int64_t i = 0; i < tile.queries; i += lanes<float>) {
      vec_u32 words[4];
      philox4x32_10(dropout.key, static_cast<uint32_t>((tile.k0 + key) / 4), static_cast<uint32_t>(tile.q0 + i),
                    static_cast<uint32_t>(tile.b * dropout.heads + tile.h), dropout.offset, words);
      for (int w = 0; w < 4; ++w)
        for (int lane = 0; lane < lanes<float>; ++lane)
          factors[(key + w) * kBlockQ + i + lane] = words[w][lane] >= dropout.threshold ? A(dropout.keep_scale) : A(0);
    }
}

// exp for the softmax: x is at most about 0, where 2^n stays a normal number or becomes 0. NaN stays NaN.
inline vec<float> exp_of_shifted(vec<float> x) {
#if defined(__AVX512F__)
  x = maximum(broadcast(-104.0f), x);  // exp is 0 from here on; the order of the operands keeps NaN
#else
  vec_i32 vanishes = (vec_i32)(x < -87.0f);
  x = maximum(broadcast(-87.0f), x);
#endif
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  vec<float> shifted = x * 1.44269504088896341f + kRound;
  vec<float> n = shifted - kRound;
  vec<float> r = x - n * 0.693147180559945f;
  // Minimax on |r| <= ln2/2, relative error 1e-7, exact at 0.
  vec<float> p = broadcast(0.008290305733680725f);
  p = p * r + 0.0418979749083519f;
  p = p * r + 0.1666763722896576f;
  p = p * r + 0.4999915063381195f;
  p = p * r + 0.9999997019767761f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  vec<float> power = bit_cast<vec<float>>((bit_cast<vec_i32>(shifted) + 127) << 23);
  return select(vanishes, vec<float>{}, p * power);
#endif
}
inline vec<double> exp_of_shifted(vec<double> x) { return exp(x); }

// One row of the forward's output from its sums; a fully masked row is 0.
template <class T, class A = acc_t<T>>
void store_output(const A* sums, A row_sum, int64_t cols, T* output) {
  A inverse = row_sum == 0 ? A(0) : 1 / row_sum;
  int64_t col = 0;
  for (; col + lanes<A> <= cols; col += lanes<A>) store(output + col, load(sums + col) * inverse);
  if (col < cols) store_partial(output + col, load(sums + col) * inverse, cols - col);
}

// Two vectors of floats as one of pairs, rounded to nearest.
inline vec_u32 pair_up(vec<float> first, vec<float> second) {
  return ((bit_cast<vec_u32>(first) + 0x8000u) >> 16) | ((bit_cast<vec_u32>(second) + 0x8000u) & 0xffff0000u);
}

}  // namespace bigkern::attention
