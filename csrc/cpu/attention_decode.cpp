// Attention over a cache of keys and values, and the writing of new ones: one whole cache per sequence, or pages.
//
// The keys of a sequence are cut into parts of fixed places, which are merged in their order: a result depends neither
// on the number of threads nor on what else is in the batch.
#include "attention_decode.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "quantize.h"

namespace bigkern {
namespace {

using namespace attention;

constexpr int64_t kPartKeys = 512;

// Where the tokens of sequence b lie.
struct CachePlaces {
  const Tensor& block_table;
  int64_t block_size, num_blocks, capacity;

  CachePlaces(const Tensor& cache, const Tensor& block_table)
      : block_table(block_table),
        block_size(cache.sizes[2]),
        num_blocks(cache.sizes[0]),
        capacity(block_size * (block_table.defined() ? block_table.sizes[1] : 1)) {}

  int64_t page(int64_t b, int64_t token) const {
    if (!block_table.defined()) return b;
    return block_table.as<const int32_t>()[b * block_table.strides[0] + token / block_size * block_table.strides[1]];
  }
  void check(int64_t b, int64_t first, int64_t count) const {
    if (first < 0 || count < 0 || first + count > capacity)
      throw std::invalid_argument("attention_decode: sequence " + std::to_string(b) + " needs " +
                                  std::to_string(first + count) + " tokens, its cache holds " +
                                  std::to_string(capacity));
    for (int64_t token = first; block_table.defined() && token < first + count;
         token = (token / block_size + 1) * block_size)
      if (page(b, token) < 0 || page(b, token) >= num_blocks)
        throw std::invalid_argument("attention_decode: block_table of sequence " + std::to_string(b) +
                                    " names a page that the cache does not have");
  }
  // Calls body(page, first slot, count, tokens before) for the pieces of tokens [first, first + count).
  template <class Body>
  void over_pages(int64_t b, int64_t first, int64_t count, const Body& body) const {
    for (int64_t done = 0; done < count;) {
      int64_t slot = (first + done) % block_size, piece = std::min(count - done, block_size - slot);
      body(page(b, first + done), slot, piece, done);
      done += piece;
    }
  }
};

int64_t read_seqlen(const Tensor& cache_seqlens, int64_t b) {
  return cache_seqlens.as<const int32_t>()[b * cache_seqlens.strides[0]];
}

float read_scale(const Tensor& scale, int64_t page, int64_t h, int64_t slot) {
  return scale.as<const float>()[page * scale.strides[0] + h * scale.strides[1] + slot * scale.strides[2]];
}

// Keys [begin, end) of one sequence and kv head.
struct Part {
  int64_t b, kv_h, begin, end;
};

template <class A>
struct PartScratch {
  A *query, *scores;

  PartScratch(Cutter& cutter, const Sizes& sizes)
      : query(cutter.take<A>(sizes.group() * sizes.len_q * round_up(sizes.head_dim, lanes<A>))),
        scores(cutter.take<A>(kDecodeKeys + 2 * lanes<A>)) {}
};

struct DecodeArguments {
  const Tensor &query, &key_cache, &value_cache, &cache_seqlens, &key_scale, &value_scale, &alibi_slopes;
  CachePlaces places;
  double scale;
  Window window;
  const Tensor &output, &lse;
};

// C: the cache's type. Sums are kept in A.
template <class C, class A = acc_t<C>>
class Decode : DecodeArguments {
 public:
  explicit Decode(const DecodeArguments& arguments) : DecodeArguments(arguments) {}

  void run() {
    std::vector<Part> parts;
    std::vector<size_t> first_parts;  // of each (sequence, kv head)
    int64_t keys = 0;
    for (int64_t b = 0; b < sizes.batch; ++b) {
      int64_t seqlen = read_seqlen(cache_seqlens, b);
      int64_t begin = std::max<int64_t>(0, seqlen - sizes.len_q - window.left) / kPartKeys * kPartKeys;
      for (int64_t kv_h = 0; kv_h < sizes.kv_heads; ++kv_h) {
        first_parts.push_back(parts.size());
        keys += std::max<int64_t>(0, seqlen - begin);
        // One part at least, which may be empty.
        for (int64_t k = begin; k == begin || k < seqlen; k += kPartKeys)
          parts.push_back({b, kv_h, k, std::min(seqlen, k + kPartKeys)});
      }
    }
    first_parts.push_back(parts.size());

    auto partial = cut_many<PartialOutput<A>>(shared_workspace(), static_cast<int64_t>(parts.size()), sizes);
    constexpr int64_t kWorthWaking = 1 << 15;  // elements read, that a thread should have
    auto count = static_cast<int64_t>(parts.size());
    int64_t elements = keys * (sizes.head_dim + sizes.value_dim) / count;  // of a part
    parallel_for(count, ceil_div(kWorthWaking, std::max<int64_t>(1, elements)), [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item)
        attend(parts[static_cast<size_t>(item)], partial[static_cast<size_t>(item)]);
    });
    constexpr int64_t kHeadsWorthWaking = 16;
    parallel_for(sizes.batch * sizes.kv_heads, kHeadsWorthWaking, [&](int64_t first, int64_t last) {
      for (int64_t head = first; head < last; ++head) {
        auto from = static_cast<size_t>(head);
        PartialOutput<A>& total = partial[first_parts[from]];
        for (size_t part = first_parts[from] + 1; part < first_parts[from + 1]; ++part)
          for (int64_t row = 0; row < rows; ++row) merge(partial[part], row, row_size, total);
        store_head(head, total);
      }
    });
    shared_workspace().trim();
  }

 private:
  Sizes sizes{query, key_cache, value_cache};
  int64_t rows = sizes.group() * sizes.len_q;
  int64_t row_size = round_up(sizes.value_dim, lanes<A>), query_size = round_up(sizes.head_dim, lanes<A>);

  void load_queries(const Part& part, A* target) {
    dispatch_floating(query.dtype, "attention_decode: query", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (std::is_same_v<acc_t<T>, A>)
        for (int64_t row = 0; row < rows; ++row) {
          auto queries = matrix<T>(query, part.b, part.kv_h * sizes.group() + row / sizes.len_q);
          for (int64_t col = 0; col < sizes.head_dim; col += lanes<A>)
            store(target + row * query_size + col, load_row(queries, row % sizes.len_q, col));
        }
    });
  }

  void attend(const Part& part, const PartialOutput<A>& sums) {
    auto scratch = cut<PartScratch<A>>(private_workspace(), sizes);
    load_queries(part, scratch.query);
    std::fill_n(sums.output, rows * row_size, A(0));
    std::fill_n(sums.row_max, rows, -std::numeric_limits<A>::infinity());
    std::fill_n(sums.row_sum, rows, A(0));
    int64_t first_position = read_seqlen(cache_seqlens, part.b) - sizes.len_q;
    for (int64_t first = part.begin; first < part.end; first += kDecodeKeys) {
      int64_t end = std::min(part.end, first + kDecodeKeys);
      for (int64_t row = 0; row < rows; ++row) {
        int64_t position = first_position + row % sizes.len_q;
        int64_t row_first = std::max(first, position - window.left), row_end = window.end_key(position + 1, end);
        if (row_first >= row_end) continue;
        double slope = slope_of(alibi_slopes, part.b, part.kv_h * sizes.group() + row / sizes.len_q);
        score(part, scratch.query + row * query_size, row_first, row_end - row_first, scratch.scores);
        if (slope != 0)
          for (int64_t k = row_first; k < row_end; ++k)
            scratch.scores[k - row_first] -= static_cast<A>(slope * std::abs(static_cast<double>(position - k)));
        A rescale = softmax_step_of_row(scratch.scores, row_end - row_first, sums.row_max[row], sums.row_sum[row]);
        add_values(part, row_first, row_end - row_first, scratch.scores, rescale, sums.output + row * row_size);
      }
    }
  }

  void score(const Part& part, const A* row, int64_t first, int64_t count, A* scores) {
    places.over_pages(part.b, first, count, [&](int64_t page, int64_t slot, int64_t piece, int64_t before) {
      auto keys = matrix<C>(key_cache, page, part.kv_h);
      for (int64_t i = 0; i < piece; i += lanes<A>) {
        int64_t vector = std::min<int64_t>(lanes<A>, piece - i);
        store(scores + before + i, scores_of_keys<C>(row, keys, slot + i, vector) * static_cast<A>(scale));
        if (key_scale.defined())
          for (int64_t lane = 0; lane < vector; ++lane)
            scores[before + i + lane] *= read_scale(key_scale, page, part.kv_h, slot + i + lane);
      }
    });
  }

  void add_values(const Part& part, int64_t first, int64_t count, A* weights, A rescale, A* target) {
    places.over_pages(part.b, first, count, [&](int64_t page, int64_t slot, int64_t piece, int64_t before) {
      if (value_scale.defined())
        for (int64_t i = 0; i < piece; ++i) weights[before + i] *= read_scale(value_scale, page, part.kv_h, slot + i);
      accumulate_all_values(matrix<C>(value_cache, page, part.kv_h), slot, piece, weights + before,
                            before == 0 ? rescale : A(1), target);
    });
  }

  void store_head(int64_t head, const PartialOutput<A>& total) {
    dispatch_floating(output.dtype, "attention_decode: output", [&](auto tag) {
      using T = typename decltype(tag)::type;
      if constexpr (std::is_same_v<acc_t<T>, A>)
        for (int64_t row = 0; row < rows; ++row) {
          int64_t out_row = head * rows + row;  // heads of a group follow each other, as in the output
          store_output<T>(total.output + row * row_size, total.row_sum[row], sizes.value_dim,
                          output.as<T>() + out_row * sizes.value_dim);
          lse.as<A>()[out_row] = total.row_max[row] + std::log(total.row_sum[row]);
        }
    });
  }
};

// One token of one head, as int8 with a scale.
template <class T>
void quantize_token(const T* source, int64_t stride, int64_t count, int8_t* target, int64_t target_stride,
                    float* scale) {
  auto params = symmetric_params(range_of(source, count, stride));
  params.scale = static_cast<float>(params.scale);
  *scale = static_cast<float>(params.scale);
  for (int64_t i = 0; i < count; ++i) target[i * target_stride] = quantize_one(source[i * stride], params);
}

}  // namespace

void attention_decode_forward(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                              const Tensor& cache_seqlens, const Tensor& block_table, const Tensor& key_scale,
                              const Tensor& value_scale, const Tensor& alibi_slopes, double scale, int64_t window_left,
                              int64_t window_right, const Tensor& output, const Tensor& lse) {
  if (lse.numel() == 0) return;
  CachePlaces places(key_cache, block_table);
  for (int64_t b = 0; b < query.sizes[0]; ++b) places.check(b, 0, read_seqlen(cache_seqlens, b));
  DecodeArguments arguments{
      query,       key_cache,    value_cache, cache_seqlens, key_scale,
      value_scale, alibi_slopes, places,      scale,         Window(false, window_left, window_right),
      output,      lse};
  if (key_cache.dtype == DType::int8) return Decode<int8_t>(arguments).run();
  dispatch_floating(key_cache.dtype, "attention_decode_forward",
                    [&](auto tag) { Decode<typename decltype(tag)::type>(arguments).run(); });
}

void cache_append_step(const TensorList& caches, const TensorList& scales, const Tensor& key, const Tensor& value,
                       const Tensor& cache_seqlens, const Tensor& block_table) {
  CachePlaces places(caches[0], block_table);
  int64_t batch = key.sizes[0], heads = key.sizes[1], len_new = key.sizes[2];
  for (int64_t b = 0; b < batch; ++b) places.check(b, read_seqlen(cache_seqlens, b), len_new);
  auto append = [&](const Tensor& source, const Tensor& cache, const Tensor* scale) {
    dispatch_floating(source.dtype, "cache_append_step", [&](auto tag) {
      using T = typename decltype(tag)::type;
      int64_t dim = source.sizes[3];
      parallel_for(batch * heads, ceil_div(int64_t{1} << 14, std::max<int64_t>(1, len_new * dim)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t item = begin; item < end; ++item) {
                       int64_t b = item / heads, h = item % heads, first = read_seqlen(cache_seqlens, b);
                       auto tokens = matrix<T>(source, b, h);
                       for (int64_t t = 0; t < len_new; ++t) {
                         int64_t page = places.page(b, first + t), slot = (first + t) % places.block_size;
                         int64_t at = page * cache.strides[0] + h * cache.strides[1] + slot * cache.strides[2];
                         if (scale) {
                           float* place = scale->as<float>() + page * scale->strides[0] + h * scale->strides[1] +
                                          slot * scale->strides[2];
                           quantize_token<T>(tokens.at(t, 0), tokens.col_stride, dim, cache.as<int8_t>() + at,
                                             cache.strides[3], place);
                         } else {
                           T* target = cache.as<T>() + at;
                           for (int64_t i = 0; i < dim; ++i) target[i * cache.strides[3]] = *tokens.at(t, i);
                         }
                       }
                     }
                   });
    });
  };
  append(key, caches[0], scales.empty() ? nullptr : &scales[0]);
  append(value, caches[1], scales.empty() ? nullptr : &scales[1]);
}

}  // namespace bigkern
