#include "quantize.h"

#include <vector>

#include "dtype.h"
#include "kernels.h"
#include "parallel.h"

namespace bigkern {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth waking a thread for

// A [outer, groups, inner] tensor; one scale per group.
template <class T>
struct Grouped {
  T* data;
  int64_t outer, groups, inner;
  int64_t outer_stride, group_stride, inner_stride;

  explicit Grouped(const Tensor& tensor)
      : data(tensor.as<T>()),
        outer(tensor.sizes[0]),
        groups(tensor.sizes[1]),
        inner(tensor.sizes[2]),
        outer_stride(tensor.strides[0]),
        group_stride(tensor.strides[1]),
        inner_stride(tensor.strides[2]) {}

  T* run(int64_t o, int64_t g) const { return data + o * outer_stride + g * group_stride; }
  int64_t group_grain() const { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, outer * inner)); }
};

// Calls body(first, last) on pieces of one long run in parallel: for the per-tensor case, which has a single group.
template <class Body>
void over_pieces(int64_t inner, const Body& body) {
  constexpr int64_t kPiece = 4096;  // a multiple of every vector width
  int64_t pieces = (inner + kPiece - 1) / kPiece;
  parallel_for(pieces, kGrain / kPiece,
               [&](int64_t begin, int64_t end) { body(begin * kPiece, std::min(end * kPiece, inner)); });
}

template <class T>
void ranges_of_groups(const Grouped<const T>& input, std::vector<Range<acc_t<T>>>& ranges) {
  if (input.groups == 1 && input.outer == 1) {
    over_pieces(input.inner, [&](int64_t first, int64_t last) {
      auto part = range_of(input.data + first * input.inner_stride, last - first, input.inner_stride);
#pragma omp critical(bigkern_quantize_range)
      ranges[0].include(part);
    });
    return;
  }
  parallel_for(input.groups, input.group_grain(), [&](int64_t begin, int64_t end) {
    for (int64_t o = 0; o < input.outer; ++o)
      for (int64_t g = begin; g < end; ++g) {
        if (input.inner == 1)
          ranges[g].include(to_acc(*input.run(o, g)));
        else
          ranges[g].include(range_of(input.run(o, g), input.inner, input.inner_stride));
      }
  });
}

template <class T>
void quantize_typed(const Tensor& input_tensor, bool symmetric, const Tensor& qinput, const Tensor& scale,
                    const Tensor& zero_point) {
  using A = acc_t<T>;
  Grouped<const T> input(input_tensor);
  Grouped<int8_t> output(qinput);
  std::vector<Range<A>> ranges(input.groups);
  ranges_of_groups(input, ranges);

  std::vector<QuantizeParams<A>> params(input.groups);
  for (int64_t g = 0; g < input.groups; ++g) {
    params[g] = symmetric ? symmetric_params(ranges[g]) : affine_params(ranges[g]);
    scale.as<A>()[g] = params[g].scale;
    if (!symmetric) zero_point.as<int32_t>()[g] = params[g].zero_point;
  }

  if (input.groups == 1 && input.outer == 1) {
    over_pieces(input.inner, [&](int64_t first, int64_t last) {
      quantize_run(input.data + first * input.inner_stride, last - first, input.inner_stride, params[0],
                   output.data + first);
    });
    return;
  }
  parallel_for(input.groups, input.group_grain(), [&](int64_t begin, int64_t end) {
    for (int64_t o = 0; o < input.outer; ++o)
      for (int64_t g = begin; g < end; ++g)
        quantize_run(input.run(o, g), input.inner, input.inner_stride, params[g], output.run(o, g));
  });
}

template <class T>
void dequantize_run(const int8_t* qvalues, int64_t count, int64_t stride, acc_t<T> scale, int32_t zero_point,
                    T* values) {
  using A = acc_t<T>;
  int64_t i = 0;
  if constexpr (std::is_same_v<A, float>) {
    constexpr int kLanes = lanes<float>;
    if (stride == 1)
      for (; i + kLanes <= count; i += kLanes) {
        vec_i8 narrow;
        std::memcpy(&narrow, qvalues + i, sizeof(narrow));
        vec_i32 q = __builtin_convertvector(narrow, vec_i32) - zero_point;
        store(values + i, __builtin_convertvector(q, vec<float>) * scale);
      }
  }
  for (; i < count; ++i) values[i] = from_acc<T>(A(int32_t{qvalues[i * stride]} - zero_point) * scale);
}

template <class T>
void dequantize_typed(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point,
                      const Tensor& output_tensor) {
  using A = acc_t<T>;
  Grouped<const int8_t> input(qinput);
  Grouped<T> output(output_tensor);
  auto scale_of = [&](int64_t g) { return scale.as<A>()[g * scale.strides[0]]; };
  auto zero_point_of = [&](int64_t g) {
    return zero_point.defined() ? zero_point.as<int32_t>()[g * zero_point.strides[0]] : 0;
  };
  if (input.groups == 1 && input.outer == 1) {
    over_pieces(input.inner, [&](int64_t first, int64_t last) {
      dequantize_run(input.data + first * input.inner_stride, last - first, input.inner_stride, scale_of(0),
                     zero_point_of(0), output.data + first);
    });
    return;
  }
  parallel_for(input.groups, input.group_grain(), [&](int64_t begin, int64_t end) {
    for (int64_t o = 0; o < input.outer; ++o)
      for (int64_t g = begin; g < end; ++g)
        dequantize_run(input.run(o, g), input.inner, input.inner_stride, scale_of(g), zero_point_of(g),
                       output.run(o, g));
  });
}

}  // namespace

void quantize_forward(const Tensor& input, bool symmetric, const Tensor& qinput, const Tensor& scale,
                      const Tensor& zero_point) {
  dispatch_floating(input.dtype, "quantize_forward", [&](auto tag) {
    quantize_typed<typename decltype(tag)::type>(input, symmetric, qinput, scale, zero_point);
  });
}

void dequantize_forward(const Tensor& qinput, const Tensor& scale, const Tensor& zero_point, const Tensor& output) {
  dispatch_floating(output.dtype, "dequantize_forward", [&](auto tag) {
    dequantize_typed<typename decltype(tag)::type>(qinput, scale, zero_point, output);
  });
}

}  // namespace bigkern
