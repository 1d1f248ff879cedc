// [batch, channels, positions] tensors with any strides, read a channel or a strip of channels at a time.
//
// Where positions lie side by side ("planes"), a channel is cut into pieces of kPiece elements; where channels do, rows
// of channels are cut into tiles of kTileRows by kStrip. Both are functions of the shape alone, and so is the order of
// every sum over them.
#pragma once

#include <vector>

#include "norm.h"

namespace bigkern::channels {

using norm::kGrain;
using norm::kPiece;
using norm::load_lanes;
using norm::over_vectors;
using norm::store_lanes;

// Calls body(TypeTag<A>{}) for the precision in which a dtype is computed.
template <class Body>
void with_precision(DType dtype, const Body& body) {
  dtype == DType::float64 ? body(TypeTag<double>{}) : body(TypeTag<float>{});
}

// values[i] = source[i * stride], widened.
template <class T, class A>
void widen(const T* source, int64_t stride, int64_t count, A* values) {
  if (stride == 1)
    over_vectors<A>(count, [=](int64_t i, int64_t n) { store_lanes(values + i, load_lanes(source + i, n), n); });
  else
    for (int64_t i = 0; i < count; ++i) values[i] = to_acc(source[i * stride]);
}

// A tensor that is read as numbers of type A, float or double: one kernel serves every dtype of that precision.
template <class A>
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch = 0, channels = 0, positions = 0, stride_n = 0, stride_c = 0, stride_s = 0;

  explicit Operand(const Tensor& t) {
    if (!t.defined()) return;
    data = t.data, dtype = t.dtype;
    batch = t.sizes[0], channels = t.sizes[1], positions = t.sizes[2];
    stride_n = t.strides[0], stride_c = t.strides[1], stride_s = t.strides[2];
  }
  explicit operator bool() const { return data != nullptr; }
  bool is_direct() const { return dtype == (sizeof(A) == 8 ? DType::float64 : DType::float32); }
  const void* address(int64_t offset) const {
    return static_cast<const char*>(data) + offset * (is_direct() ? int64_t{sizeof(A)} : 2);
  }
  const A* direct(int64_t offset) const { return static_cast<const A*>(data) + offset; }

  // `count` numbers side by side: where they lie, or in `scratch`.
  const A* values(int64_t offset, int64_t stride, int64_t count, A* scratch) const {
    if (is_direct()) {
      if (stride == 1) return direct(offset);
      widen(direct(offset), stride, count, scratch);
    } else if constexpr (sizeof(A) == 4) {
      if (dtype == DType::bfloat16)
        widen(static_cast<const bfloat16*>(data) + offset, stride, count, scratch);
      else
        widen(static_cast<const half*>(data) + offset, stride, count, scratch);
    }
    return scratch;
  }
  // `count` positions of a plane.
  const A* in_plane(int64_t n, int64_t c, int64_t begin, int64_t count, A* scratch) const {
    return values(n * stride_n + c * stride_c + begin * stride_s, stride_s, count, scratch);
  }
  // `count` channels of row n * positions + s.
  const A* in_row(int64_t row, int64_t begin, int64_t count, A* scratch) const {
    return values(row_start(row) + begin * stride_c, stride_c, count, scratch);
  }
  bool has_even_rows() const { return stride_n == positions * stride_s || batch == 1; }
  int64_t row_start(int64_t row) const {
    return has_even_rows() ? row * stride_s : row / positions * stride_n + row % positions * stride_s;
  }
};

// target[i] = value, in target's dtype.
inline void set_value(const Tensor& target, int64_t i, double value) {
  switch (target.dtype) {
    case DType::float64: target.as<double>()[i] = value; break;
    case DType::float32: target.as<float>()[i] = static_cast<float>(value); break;
    case DType::float16: target.as<half>()[i] = from_acc<half>(static_cast<float>(value)); break;
    default: target.as<bfloat16>()[i] = from_acc<bfloat16>(static_cast<float>(value));
  }
}

// A tensor that is written side by side as numbers of type A; absent (false) where it is not needed.
template <class A>
struct Result {
  void* data = nullptr;
  DType dtype = DType::float32;

  Result() = default;
  explicit Result(const Tensor& t) : data(t.data), dtype(t.dtype) {}
  explicit operator bool() const { return data != nullptr; }
  bool is_direct() const { return dtype == (sizeof(A) == 8 ? DType::float64 : DType::float32); }

  // Where to put the numbers from `offset` on, before `finish` takes them.
  A* at(int64_t offset, A* scratch) const { return is_direct() ? static_cast<A*>(data) + offset : scratch; }
  void finish(int64_t offset, int64_t count, const A* scratch) const {
    if constexpr (sizeof(A) == 4) {
      if (dtype == DType::bfloat16)
        narrow(scratch, count, static_cast<bfloat16*>(data) + offset);
      else if (dtype == DType::float16)
        narrow(scratch, count, static_cast<half*>(data) + offset);
    }
  }

 private:
  template <class T>
  static void narrow(const A* values, int64_t count, T* target) {
    over_vectors<A>(count, [=](int64_t i, int64_t n) { store_lanes(target + i, load_lanes(values + i, n), n); });
  }
};

// Whether results have their channels side by side; the same rule as is_channels_last in channel_arguments.py, up to
// layouts that are one and the same in memory.
inline bool are_rows(const Tensor& input) {
  int64_t channels = input.sizes[1], positions = input.sizes[2];
  return positions == 1 || (channels > 1 && input.strides[1] == 1 && input.strides[2] == channels);
}

// ---- planes -------------------------------------------------------------------------------------------------------

// A channel's pieces: parts of one plane, or as many short planes as fit into kPiece.
struct Pieces {
  int64_t batch, positions, together, per_plane, count;

  Pieces(int64_t batch, int64_t positions)
      : batch(batch),
        positions(positions),
        together(positions * 2 <= kPiece ? std::max<int64_t>(kPiece / std::max<int64_t>(positions, 1), 1) : 1),
        per_plane((positions + kPiece - 1) / kPiece),
        count(together > 1 ? (batch + together - 1) / together : batch * per_plane) {}

  int64_t size(int64_t piece) const {
    if (together > 1) return std::min(together, batch - piece * together) * positions;
    return std::min(kPiece, positions - piece % per_plane * kPiece);
  }
  template <class A>
  const A* load(const Operand<A>& operand, int64_t c, int64_t piece, A* scratch) const {
    if (together == 1) return operand.in_plane(piece / per_plane, c, piece % per_plane * kPiece, size(piece), scratch);
    int64_t first = piece * together, planes = std::min(together, batch - first);
    if (planes == 1) return operand.in_plane(first, c, 0, positions, scratch);
    for (int64_t n = 0; n < planes; ++n) {
      A* target = scratch + n * positions;
      const A* source = operand.in_plane(first + n, c, 0, positions, target);
      if (source != target) std::copy(source, source + positions, target);
    }
    return scratch;
  }
};

// ---- rows ---------------------------------------------------------------------------------------------------------

constexpr int64_t kTileRows = 64;
template <class A>
constexpr int64_t kStrip = 4 * lanes<A>;

// kTileRows rows by kStrip channels: where they lie, or copied with zeros in the channels that are missing.
template <class A>
struct Tile {
  const A* data;
  int64_t stride;

  Tile(const Operand<A>& operand, int64_t first_row, int64_t rows, int64_t channel, A* scratch) {
    int64_t count = std::min(kStrip<A>, operand.channels - channel);
    if (operand.is_direct() && operand.has_even_rows() && operand.stride_c == 1 && count == kStrip<A>) {
      data = operand.direct(operand.row_start(first_row) + channel);
      stride = operand.stride_s;
      return;
    }
    for (int64_t row = 0; row < rows; ++row) {
      A* target = scratch + row * kStrip<A>;
      const A* source = operand.in_row(first_row + row, channel, count, target);
      if (source != target) std::copy(source, source + count, target);
      std::fill(target + count, target + kStrip<A>, A(0));
    }
    data = scratch;
    stride = kStrip<A>;
  }
  vec<A> at(int64_t row, int k) const { return load(data + row * stride + k * lanes<A>); }
};

// Rows whose sums are taken one after the other; more blocks would spend their time on partial sums.
inline int64_t rows_per_block(int64_t rows) { return std::max<int64_t>(4 * kTileRows, (rows + 127) / 128); }

// Calls body(block, strip, first channel) for each block of rows and strip of channels, in parallel.
template <class A, class Body>
void over_strips(int64_t rows, int64_t channels, const Body& body) {
  if (rows == 0) return;
  int64_t block_rows = rows_per_block(rows), blocks = (rows + block_rows - 1) / block_rows;
  int64_t strips = (channels + kStrip<A> - 1) / kStrip<A>;
  int64_t grain = kGrain / std::min(rows * kStrip<A>, block_rows * kStrip<A>) + 1;
  parallel_for(blocks * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t block = item / strips, first = block * block_rows;
      body(block, first, std::min(rows, first + block_rows), item % strips * kStrip<A>);
    }
  });
}

}  // namespace bigkern::channels
