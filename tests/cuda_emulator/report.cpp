#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

static std::string ranges(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    text += (i ? ", " : "") + std::to_string(ranks[i]);
    if (end > i + 1) text += "-" + std::to_string(ranks[end - 1]);
    i = end;
  }
  return text;
}

static std::string place_of(const Thread& thread) {
  if (thread.exited) return "exited";
  if (!thread.waits_for) return "running";
  const char* slash = strrchr(thread.site.file, '/');
  return std::string("at ") + thread.waits_for + ", " + (slash ? slash + 1 : thread.site.file) + ":" +
         std::to_string(thread.site.line);
}

static void print_threads() {
  std::vector<std::string> places;
  for (int i = 0; i < num_threads; ++i) {
    std::string place = place_of(*threads[i]);
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }
  for (const std::string& place : places) {
    std::vector<int> ranks;
    for (int i = 0; i < num_threads; ++i)
      if (place_of(*threads[i]) == place) ranks.push_back(i);
    fprintf(stderr, "  %s: threads %s\n", place.c_str(), ranges(ranks).c_str());
  }
}

static void print_block() { fprintf(stderr, "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z); }

[[noreturn]] static void end_process() {
  fflush(stderr);
  _exit(3);
}

void fail(Site site, const char* format, ...) {
  const char* slash = strrchr(site.file, '/');
  fprintf(stderr, "emulator: %s:%d: ", slash ? slash + 1 : site.file, site.line);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (self) {
    fprintf(stderr, "\n  in thread %d of ", self->rank);
    print_block();
  }
  fprintf(stderr, "\n");
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_print_stack_trace();
#endif
  end_process();
}

void report_deadlock() {
  fprintf(stderr, "emulator: deadlock: no thread of ");
  print_block();
  fprintf(stderr, " can run on\n");
  print_threads();
  end_process();
}

void report_divergence(const char* what) {
  fprintf(stderr, "emulator: divergence: %s\n", what);
  print_threads();
  end_process();
}

}  // namespace emulator
