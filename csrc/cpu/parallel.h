// Parallel loops on the OpenMP pool that the process already has (torch's own, where torch is loaded).
#pragma once

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <cstdint>

namespace bigkern {

// libgomp's threads do not exist in a forked child, and waiting for them would hang: children run on one thread.
inline bool& in_forked_child() {
  static bool forked = [] {
    pthread_atfork(nullptr, nullptr, [] { in_forked_child() = true; });
    return false;
  }();
  return forked;
}

// Multiplications that are worth waking a thread for: about 5 microseconds of one core.
constexpr double kWorkPerThread = 1 << 18;

inline int available_threads() {
  if (in_forked_child() || omp_in_parallel()) return 1;
  return omp_get_max_threads();
}

// Calls body(begin, end) on disjoint ranges that cover [0, count). Each range holds at least `grain` items (the last
// may hold fewer), so that a small problem is not spread thinner than the cost of waking a thread.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  int64_t threads = std::min<int64_t>(available_threads(), (count + grain - 1) / std::max<int64_t>(grain, 1));
  if (threads <= 1) {
    body(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    // The runtime may grant fewer threads than asked for: divide by what is really there.
    int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
    int64_t share = count / team, rest = count % team;
    int64_t begin = rank * share + std::min(rank, rest);
    int64_t end = begin + share + (rank < rest ? 1 : 0);
    if (begin < end) body(begin, end);
  }
}

// Like parallel_for, but hands out one item at a time: for items of very different cost (causal attention).
template <class Body>
void parallel_for_dynamic(int64_t count, const Body& body) {
  int64_t threads = std::min<int64_t>(available_threads(), count);
  if (threads <= 1) {
    for (int64_t item = 0; item < count; ++item) body(item);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
  for (int64_t item = 0; item < count; ++item) body(item);
}

}  // namespace bigkern
