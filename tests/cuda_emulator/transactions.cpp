#include "transactions.h"

#include <stdio.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "race.h"
#include "tensor_map.h"

namespace emulator {

// ---- barriers ------------------------------------------------------------------------------------------------------

// What an initialised barrier's 64 bits hold: a store over it, or no initialisation, is then seen.
constexpr uint64_t kInitialised = 0x6D6261727269656B;

struct TransactionBarrier {
  int count, pending_arrivals;
  // Announced but not copied yet; below zero where copies came before their announcement.
  int64_t pending_bytes;
  int parity;
  const Thread* initialised_by;
  bool visible_to_copies;
  // What is known to those who arrived in this phase, and, by parity, in the last phases.
  Clock clock, ended[2];
};

static std::map<const uint64_t*, TransactionBarrier> transaction_barriers;

static TransactionBarrier& barrier_at(const char* what, const uint64_t* barrier, Site site) {
  require_shared(what, barrier, sizeof(*barrier), sizeof(*barrier), site);
  auto found = transaction_barriers.find(barrier);
  if (found == transaction_barriers.end()) fail(site, "%s: the barrier is not initialised", what);
  if (*barrier != kInitialised) fail(site, "%s: the barrier has been overwritten", what);
  return found->second;
}

static void end_phase_if_all_came(TransactionBarrier& barrier) {
  if (barrier.pending_arrivals > 0 || barrier.pending_bytes != 0) return;
  barrier.pending_arrivals = barrier.count;
  barrier.ended[barrier.parity] = std::exchange(barrier.clock, {});
  barrier.parity ^= 1;
  release(&barrier);
}

void barrier_init(uint64_t* barrier, int count, Site site) {
  require_shared("mbarrier_init", barrier, sizeof(*barrier), sizeof(*barrier), site);
  if (count < 1 || count >= 1 << 20) fail(site, "mbarrier_init: %d arrivals", count);
  race_access(barrier, sizeof(*barrier), Access::kWrite, site);
  *barrier = kInitialised;
  transaction_barriers[barrier] = {count, count, 0, 0, self, false, {}, {}};
}

void barrier_init_fence() {
  for (auto& [address, barrier] : transaction_barriers)
    if (barrier.initialised_by == self) barrier.visible_to_copies = true;
}

void barrier_arrive(uint64_t* address, int bytes, Site site) {
  TransactionBarrier& barrier = barrier_at("mbarrier_arrive", address, site);
  if (barrier.pending_arrivals == 0) fail(site, "mbarrier_arrive: more than %d arrivals in one phase", barrier.count);
  if (bytes < 0 || bytes >= 1 << 20) fail(site, "mbarrier_arrive: cannot expect %d bytes", bytes);
  race_access(address, sizeof(*address), Access::kAtomic, site);
  race_release(barrier.clock);
  --barrier.pending_arrivals;
  barrier.pending_bytes += bytes;
  end_phase_if_all_came(barrier);
}

void barrier_wait(uint64_t* address, int parity, Site site) {
  TransactionBarrier& barrier = barrier_at("mbarrier_wait", address, site);
  if (parity != 0 && parity != 1) fail(site, "mbarrier_wait: parity %d", parity);
  race_access(address, sizeof(*address), Access::kAtomic, site);
  while (barrier.parity == parity) wait("mbarrier_wait", site, &barrier);
  race_acquire(barrier.ended[parity]);
}

void proxy_fence() { race_proxy_fence(); }

// ---- tensor copies -------------------------------------------------------------------------------------------------

struct Load {
  TensorDescription tensor;
  void* shared;
  uint64_t* barrier;
  int place[kMaxRank];
  Site site;
  Actor copy;
};

struct Store {
  TensorDescription tensor;
  const void* shared;
  int place[kMaxRank];
  Site site;
  Actor copy;
  bool done;
};

using StoreGroup = std::vector<Store>;

struct Stores {
  StoreGroup open;
  std::deque<StoreGroup> committed;
};

static std::vector<Load> loads;
static std::map<const Thread*, Stores> stores;

static void do_load(const Load& load) {
  race_copy_access(load.copy, load.shared, box_bytes(load.tensor), Access::kWrite, load.site);
  load_box(load.tensor, load.shared, load.place);
  TransactionBarrier& barrier = barrier_at("tensor_load", load.barrier, load.site);
  race_end_copy(load.copy, barrier.clock);
  barrier.pending_bytes -= int64_t(box_bytes(load.tensor));
  end_phase_if_all_came(barrier);
}

void start_tensor_load(void* shared, const void* map, uint64_t* barrier, const int* place, int rank, Site site) {
  Load load = {*static_cast<const TensorDescription*>(map), shared, barrier, {}, site, race_start_copy()};
  std::copy(place, place + rank, load.place);
  require_box("tensor_load", load.tensor, shared, rank, site);
  if (!barrier_at("tensor_load", barrier, site).visible_to_copies)
    fail(site, "tensor_load: no mbarrier_init_fence came after mbarrier_init");
  if (do_it_now())
    do_load(load);
  else
    loads.push_back(load);
}

bool do_a_copy() {
  if (loads.empty()) return false;
  // Their order is not promised: the newest of those that somebody waits for, since the others may be later still.
  auto awaited = [](const Load& load) { return is_awaited(&barrier_at("tensor_load", load.barrier, load.site)); };
  auto newest = std::find_if(loads.rbegin(), loads.rend(), awaited);
  if (newest == loads.rend()) newest = loads.rbegin();
  Load load = *newest;
  loads.erase(std::next(newest).base());
  do_load(load);
  return true;
}

static void do_store(const Store& store) {
  race_copy_access(store.copy, store.shared, box_bytes(store.tensor), Access::kRead, store.site);
  store_box(store.tensor, store.shared, store.place, [&](const void* target, size_t bytes) {
    race_copy_access(store.copy, target, bytes, Access::kWrite, store.site);
  });
}

void start_tensor_store(const void* map, const void* shared, const int* place, int rank, Site site) {
  Store store = {*static_cast<const TensorDescription*>(map), shared, {}, site, race_start_copy(), do_it_now()};
  std::copy(place, place + rank, store.place);
  require_box("tensor_store", store.tensor, shared, rank, site);
  if (store.done) do_store(store);
  stores[self].open.push_back(store);
}

void commit_tensor_stores() {
  Stores& mine = stores[self];
  mine.committed.push_back(mine.open);
  mine.open.clear();
}

void wait_for_tensor_stores(int pending) {
  auto& committed = stores[self].committed;
  while (int(committed.size()) > pending) {
    for (const Store& store : committed.front()) {
      if (!store.done) do_store(store);
      Clock clock;
      race_end_copy(store.copy, clock);
      race_acquire(clock);
    }
    committed.pop_front();
  }
}

// ---- ends ----------------------------------------------------------------------------------------------------------

void end_thread_transactions() {
  auto mine = stores.find(self);
  if (mine == stores.end()) return;
  bool waited = mine->second.open.empty();
  for (const StoreGroup& group : mine->second.committed) waited = waited && group.empty();
  if (!waited) fail(here(), "a thread ends while its tensor stores may still read shared memory");
  stores.erase(mine);
}

void end_block_transactions() {
  if (!loads.empty()) fail(loads[0].site, "tensor_load: the block ends before the copy");
  for (auto& [address, barrier] : transaction_barriers)
    if (barrier.pending_bytes)
      fail(here(), "the block ends while an mbarrier still expects %lld bytes", (long long)barrier.pending_bytes);
  transaction_barriers.clear();
}

}  // namespace emulator
