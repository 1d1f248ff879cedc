#include "copies.h"

#include <string.h>

#include <deque>
#include <vector>

#include "race.h"

namespace emulator {

constexpr int kCopyBytes = 16;

struct Copy {
  void* shared;
  char data[kCopyBytes];
  Site site;
  bool done;
};

using Group = std::vector<Copy>;

struct CopyQueue {
  Group open;
  std::deque<Group> committed;
};

CopyQueue* new_copy_queue() { return new CopyQueue; }

void drop_copies(CopyQueue* queue) { *queue = {}; }

void start_copy(void* shared, const void* global, int source_bytes, Site site) {
  require_shared("cp.async", shared, kCopyBytes, kCopyBytes, site);
  if (uintptr_t(global) % kCopyBytes) fail(site, "cp.async: global address %p is no multiple of 16", global);
  if (source_bytes < 0 || source_bytes > kCopyBytes) fail(site, "cp.async: cannot read %d bytes", source_bytes);
  Copy copy = {shared, {}, site, do_it_now()};
  // Read at once, so that an address out of bounds is reported where the copy was started.
  memcpy(copy.data, global, size_t(source_bytes));
  // To others the store may come at any time from here to the wait: it counts at both ends.
  race_access(global, size_t(source_bytes), Access::kRead, site);
  race_access(shared, kCopyBytes, Access::kWrite, site);
  if (copy.done) memcpy(shared, copy.data, kCopyBytes);
  self->copies->open.push_back(copy);
}

void commit_copies() {
  self->copies->committed.push_back(self->copies->open);
  self->copies->open.clear();
}

void wait_for_copies(int pending) {
  auto& committed = self->copies->committed;
  while (int(committed.size()) > pending) {
    for (const Copy& copy : committed.front()) {
      race_access(copy.shared, kCopyBytes, Access::kWrite, copy.site);
      if (!copy.done) memcpy(copy.shared, copy.data, kCopyBytes);
    }
    committed.pop_front();
  }
}

}  // namespace emulator
