// cp.async: copies of 16 bytes from global to shared memory, in groups, waited for by the thread that started them.
#pragma once

#include "grid.h"

namespace emulator {

CopyQueue* new_copy_queue();

// Forgets what a block started and never waited for.
void drop_copies(CopyQueue* queue);

void start_copy(void* shared, const void* global, int source_bytes, Site site);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace emulator
