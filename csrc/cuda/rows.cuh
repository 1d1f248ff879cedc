// How kernels of memory-bound ops walk rows: by teams of threads, in 16-byte accesses wherever the address allows it.
#pragma once

#include <common.cuh>

// 16-byte accesses that a thread starts before it uses the first.
constexpr int kInFlight = 4;

// The threads that share a row: a power of two up to 32 of one warp, or (64 and more) the whole block.
struct Team {
  int size, rank, index;  // threads; which one this is; which of the block's teams
};

DEVICE Team team_of(int64 size) {
  const int threads = int(size);
  return {threads, int(threadIdx.x) % threads, int(threadIdx.x) / threads};
}

DEVICE float exchange(float value, int distance) { return __shfl_xor_sync(kAllLanes, value, distance); }

// The reduction over each team, in all its threads, always in the same order. Every thread of the block takes part.
// `exchange` is defined for T; `scratch` holds 32 of them.
template <class T, class Operation>
DEVICE T team_reduce(T value, Operation operation, int team_size, T* scratch) {
  for (int distance = min_of(team_size, kWarp) / 2; distance > 0; distance /= 2)
    value = operation(value, exchange(value, distance));
  if (team_size <= kWarp) return value;
  const int warps = team_size / kWarp;
  __syncthreads();  // an earlier reduction may still be reading
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = scratch[threadIdx.x % warps];
  for (int distance = warps / 2; distance > 0; distance /= 2) value = operation(value, exchange(value, distance));
  return value;
}

// A quotient of numbers that are not negative; 64-bit division is slow, and rarely needed.
DEVICE int64 divide(int64 dividend, int64 divisor) {
  if (divisor == 1) return dividend;
  if (((dividend | divisor) >> 32) == 0) return uint32(dividend) / uint32(divisor);
  return dividend / divisor;
}

// A row of `count` elements (fewer than 2^31) cut into `vectors` of `width` elements at 16-byte addresses and the
// singles around them.
template <int width>
struct Cut {
  int count, head, vectors;
  DEVICE int vector(int v) const { return head + v * width; }
  DEVICE int singles() const { return count - vectors * width; }
  DEVICE int single(int s) const { return s < head ? s : s + vectors * width; }
};

// `wide` says that the row's elements lie side by side; otherwise all are singles.
template <class T>
DEVICE Cut<kWidest<T>> cut_row(const T* row, int64 row_count, bool wide) {
  const int count = int(row_count);
  constexpr int width = kWidest<T>;
  if (!wide) return {count, count, 0};
  const int past = int(reinterpret_cast<uint64>(row) / sizeof(T) % width);
  const int head = min_of(count, (width - past) % width);
  return {count, head, (count - head) / width};
}

template <class T, int width>
DEVICE void to_floats(const Vector<T, width>& vector, float (&values)[width]) {
#pragma unroll
  for (int i = 0; i < width; ++i) values[i] = to_float(vector.values[i]);
}

// Calls visit(index of the first element, Vector<T, width or 1>) for this thread's part of a row in memory, cut at its
// own address or at that of another row whose boundaries meet its own; `together` accesses are under way at once.
template <int together = kInFlight, class T, int width, class Visit>
DEVICE void visit_row(const T* row, int64 stride, const Cut<width>& cut, const Team& team, Visit visit) {
  for (int first = team.rank; first < cut.vectors; first += together * team.size) {
    Vector<T, width> loaded[together];
#pragma unroll
    for (int k = 0; k < together; ++k)
      if (first + k * team.size < cut.vectors) loaded[k] = load_vector<width>(row + cut.vector(first + k * team.size));
#pragma unroll
    for (int k = 0; k < together; ++k)
      if (first + k * team.size < cut.vectors) visit(cut.vector(first + k * team.size), loaded[k]);
  }
#pragma unroll together
  for (int s = team.rank; s < cut.singles(); s += team.size)
    visit(cut.single(s), Vector<T, 1>{row[cut.single(s) * stride]});
}

// A row that its team copies to shared memory. Each thread reads back only what it copied itself, so that no barrier
// stands between; elements lie as they do in memory relative to 16-byte boundaries.
template <class T>
struct KeptRow {
  static constexpr int width = kWidest<T>;
  T* slot;
  Cut<width> cut;

  // There are bytes at `slot`, a multiple of 16, for the row and one vector more. Nothing is copied yet.
  DEVICE KeptRow(T* slot, const T* row, int64 count, bool wide) : slot(slot), cut(cut_row(row, count, wide)) {
    this->slot += (width - cut.head % width) % width;
  }

  // Starts copying.
  DEVICE KeptRow(T* slot, const T* row, int64 stride, int64 count, bool wide, const Team& team)
      : KeptRow(slot, row, count, wide) {
    for (int v = team.rank; v < cut.vectors; v += team.size)
      cp_async_16(this->slot + cut.vector(v), row + cut.vector(v));
    cp_async_commit();
    for (int s = team.rank; s < cut.singles(); s += team.size) this->slot[cut.single(s)] = row[cut.single(s) * stride];
  }

  DEVICE void wait() const { cp_async_wait<0>(); }

  // Calls visit(index of the first element, Vector<T, width or 1>), after wait().
  template <class Visit>
  DEVICE void visit(const Team& team, Visit visit) const {
#pragma unroll 2
    for (int v = team.rank; v < cut.vectors; v += team.size)
      visit(cut.vector(v), load_vector<width>(slot + cut.vector(v)));
    for (int s = team.rank; s < cut.singles(); s += team.size) visit(cut.single(s), Vector<T, 1>{slot[cut.single(s)]});
  }
};
