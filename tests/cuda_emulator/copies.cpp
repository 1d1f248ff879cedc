#include "copies.h"

#include <string.h>

#include <algorithm>
#include <vector>

#include "race.h"

namespace emulator {

constexpr int kCopyBytes = 16;

struct Copy {
  void* shared;
  char data[kCopyBytes];
  Site site;
  bool done;
  int group;
};

struct CopyQueue {
  std::vector<Copy> copies;
  // The group that is not committed yet.
  int open_group = 0;
};

CopyQueue* new_copy_queue() { return new CopyQueue; }

void drop_copies(CopyQueue* queue) { queue->copies.clear(); }

void start_copy(void* shared, const void* global, int source_bytes, Site site) {
  require_shared("cp.async", shared, kCopyBytes, kCopyBytes, site);
  if (uintptr_t(global) % kCopyBytes) fail(site, "cp.async: global address %p is no multiple of 16", global);
  if (source_bytes < 0 || source_bytes > kCopyBytes) fail(site, "cp.async: cannot read %d bytes", source_bytes);
  Copy copy = {shared, {}, site, do_it_now(), self->copies->open_group};
  // Read at once, so that an address out of bounds is reported where the copy was started.
  memcpy(copy.data, global, size_t(source_bytes));
  // To others the store may come at any time from here to the wait: it counts at both ends.
  race_access(global, size_t(source_bytes), Access::kRead, site);
  race_access(shared, kCopyBytes, Access::kWrite, site);
  if (copy.done) memcpy(shared, copy.data, kCopyBytes);
  self->copies->copies.push_back(copy);
}

void commit_copies() { ++self->copies->open_group; }

void wait_for_copies(int pending) {
  CopyQueue& queue = *self->copies;
  auto waited_for = [&](const Copy& copy) { return copy.group < queue.open_group - pending; };
  auto end = std::find_if_not(queue.copies.begin(), queue.copies.end(), waited_for);
  for (auto copy = queue.copies.begin(); copy != end; ++copy) {
    race_access(copy->shared, kCopyBytes, Access::kWrite, copy->site);
    if (!copy->done) memcpy(copy->shared, copy->data, kCopyBytes);
  }
  queue.copies.erase(queue.copies.begin(), end);
}

}  // namespace emulator
