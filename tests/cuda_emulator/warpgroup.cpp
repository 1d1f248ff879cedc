#include "warpgroup.h"

#include <string.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "race.h"
#include "swizzle.h"

namespace emulator {

constexpr int kWarpsPerGroup = 4;
constexpr int kRowsPerWarp = 16;
// What a register of d holds while a product is under way: NaN, and a conspicuous integer.
constexpr uint32_t kUnderWay = 0x7FFFFFFF;

// ---- operands in shared memory -------------------------------------------------------------------------------------

// A matrix as a descriptor places it; rows are the index of M or N. The layouts are those of the PTX ISA's section on
// the matrix descriptor: groups of 8 rows (K-major) or of 8 k (MN-major), swizzled over `span` bytes.
class SharedMatrix {
 public:
  SharedMatrix(uint64_t descriptor, bool is_mn_major, Site site) : is_mn_major_(is_mn_major), site_(site) {
    static const int spans[] = {0, 128, 64, 32};
    swizzle_ = spans[descriptor >> 62];
    span_ = swizzle_ ? swizzle_ : 16;
    leading_ = int64_t(descriptor >> 16 & 0x3FFF) << 4;
    stride_ = int64_t(descriptor >> 32 & 0x3FFF) << 4;
    start_ = static_cast<char*>(from_window(uint32_t(descriptor & 0x3FFF) << 4));
    if (descriptor >> 49 & 7) fail(site, "wgmma: the descriptor has a base offset");
    if (swizzle_) require_alignment();
  }

  // The 16 bytes that hold byte `k_byte` (a multiple of 16) of row `row`; for an MN-major matrix those with the eight
  // rows from `row` on at k.
  const char* piece_of_row(int row, int k_byte) const {
    int64_t offset = row / 8 * stride_ + row % 8 * span_;
    offset += swizzle_ ? k_byte : k_byte / 16 * leading_;
    return checked(offset);
  }

  const char* piece_of_k(int row, int k) const {
    int64_t row_bytes = row * 2, block = row_bytes / span_;
    int64_t offset = row_bytes % span_ + k % 8 * span_;
    offset += swizzle_ ? block * leading_ + k / 8 * stride_ : block * stride_ + k / 8 * leading_;
    return checked(offset);
  }

  // values[k][row] for `rows` rows and `depth` k.
  template <class Value>
  void read(Product product, int first_row, int rows, int depth, Value value) const {
    int element_bytes = 4 / numbers_per_register(product);
    if (is_mn_major_) {
      for (int k = 0; k < depth; ++k)
        for (int row = 0; row < rows; row += 8) {
          const char* piece = piece_of_k(first_row + row, k);
          for (int i = 0; i < 8; ++i) value(row + i, k, number(product, piece, i));
        }
      return;
    }
    int per_piece = 16 / element_bytes;
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < depth; k += per_piece) {
        const char* piece = piece_of_row(first_row + row, k * element_bytes);
        for (int i = 0; i < per_piece; ++i) value(row, k + i, number(product, piece, i));
      }
  }

 private:
  static float number(Product product, const char* piece, int index) {
    int width = numbers_per_register(product);
    uint32_t bits;
    memcpy(&bits, piece + index / width * 4, sizeof(bits));
    return float_operand(product, bits, index % width);
  }

  const char* checked(int64_t offset) const {
    const char* piece = swizzled(start_ + offset, swizzle_);
    require_shared("wgmma", piece, 16, 16, site_);
    race_proxy_read(piece, 16, site_);
    return piece;
  }

  // Without a base offset, 8 rows of the pattern start at a multiple of their size. A K-major operand may start some k
  // into its rows.
  void require_alignment() const {
    uintptr_t pattern = uintptr_t(8 * span_), into = uintptr_t(start_) % pattern;
    if (is_mn_major_ ? into != 0 : into + 32 > uintptr_t(span_))
      fail(site_, "wgmma: the operand starts %zu bytes into its %zu-byte swizzle pattern", size_t(into),
           size_t(pattern));
    if (stride_ % int64_t(pattern))
      fail(site_, "wgmma: stride_bytes %lld is no multiple of %zu", (long long)stride_, size_t(pattern));
    if (is_mn_major_ && leading_ % int64_t(pattern))
      fail(site_, "wgmma: leading_bytes %lld is no multiple of %zu", (long long)leading_, size_t(pattern));
  }

  bool is_mn_major_;
  Site site_;
  int swizzle_, span_;
  int64_t leading_, stride_;
  char* start_;
};

// ---- products under way --------------------------------------------------------------------------------------------

struct PendingProduct {
  WarpgroupProduct product;
  Site site;
  int first_row;
  uint32_t a_registers[kLanes][4];
  uint32_t* d[kLanes];
  bool done;
  // What d held before the first pending product that writes it.
  bool has_initial;
  uint32_t initial[kLanes][kMaxRegisters];
};

using ProductGroup = std::vector<PendingProduct>;

struct WarpProducts {
  ProductGroup open;
  std::deque<ProductGroup> committed;
  bool fenced = false;
  size_t next_in_log = 0;
};

// What the warps of a warpgroup must all do in the same order.
struct LogEntry {
  const char* what;
  std::array<uint64_t, 4> details;
  bool operator==(const LogEntry& other) const { return what == other.what && details == other.details; }
};

static std::map<int, WarpProducts> warps;
static std::map<int, std::vector<LogEntry>> logs;

static int warp() { return self->rank / kLanes; }

static void follow_log(const LogEntry& entry, Site site) {
  if (warp() / kWarpsPerGroup * kWarpsPerGroup + kWarpsPerGroup > int(blockDim.x * blockDim.y * blockDim.z) / kLanes)
    fail(site, "%s: the block has no whole warpgroup here", entry.what);
  std::vector<LogEntry>& log = logs[warp() / kWarpsPerGroup];
  size_t& next = warps[warp()].next_in_log;
  if (next == log.size()) log.push_back(entry);
  if (!(log[next++] == entry))
    fail(site, "%s: the warps of this warpgroup do different things (%s)", entry.what, log[next - 1].what);
}

// The operands of the product at hand: a [rows, k], b [k, columns].
static float a[kRowsPerWarp][32], b[32][2 * kMaxRegisters];

static void read_a(const PendingProduct& pending, int depth) {
  const WarpgroupProduct& product = pending.product;
  if (!product.a_registers) {
    SharedMatrix matrix(product.a, product.a_is_mn_major, pending.site);
    matrix.read(product.product, pending.first_row, kRowsPerWarp, depth,
                [&](int row, int k, float x) { a[row][k] = x; });
    return;
  }
  int width = numbers_per_register(product.product);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < width; ++i)
        a[lane / 4 + r % 2 * 8][lane % 4 * width + i + r / 2 * 4 * width] =
            float_operand(product.product, pending.a_registers[lane][r], i);
}

static void read_operands(const PendingProduct& pending) {
  const WarpgroupProduct& product = pending.product;
  int depth = 8 * numbers_per_register(product.product), columns = 2 * product.registers;
  read_a(pending, depth);
  SharedMatrix matrix(product.b, product.b_is_mn_major, pending.site);
  matrix.read(product.product, 0, columns, depth, [&](int row, int k, float x) { b[k][row] = x; });
}

static void do_product(const PendingProduct& pending) {
  const WarpgroupProduct& product = pending.product;
  int depth = 8 * numbers_per_register(product.product), columns = 2 * product.registers;
  read_operands(pending);
  for (int row = 0; row < kRowsPerWarp; ++row) {
    double sums[2 * kMaxRegisters] = {};
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < columns; ++column) sums[column] += double(a[row][k]) * double(b[k][column]);
    for (int column = 0; column < columns; ++column) {
      int lane = 4 * (row % 8) + column % 8 / 2;
      int r = column / 8 * 4 + row / 8 * 2 + column % 2;
      uint32_t& target = pending.d[lane][r];
      uint32_t before = pending.has_initial ? pending.initial[lane][r] : target;
      if (!product.accumulate) before = 0;
      if (product.product == Product::kInt8) {
        target = before + uint32_t(int(sums[column]));
      } else {
        float number;
        memcpy(&number, &before, sizeof(number));
        number = toward_zero(sums[column] + double(number));
        memcpy(&target, &number, sizeof(number));
      }
    }
  }
}

static bool is_under_way(const WarpProducts& mine, const uint32_t* d) {
  auto writes_d = [=](const PendingProduct& pending) { return pending.d[0] == d && !pending.done; };
  auto any = [=](const ProductGroup& group) { return std::any_of(group.begin(), group.end(), writes_d); };
  return any(mine.open) || std::any_of(mine.committed.begin(), mine.committed.end(), any);
}

struct ProductOperand {
  uint32_t* d;
  const WarpgroupProduct* product;
};

void start_product(const WarpgroupProduct& product, void* d, Site site) {
  ProductOperand operand = {static_cast<uint32_t*>(d), &product};
  warp_collective("wgmma", 0xFFFFFFFF, operand, true, site, [&](Lanes<ProductOperand> lanes) {
    WarpProducts& mine = warps[warp()];
    uint64_t flags = uint64_t(product.registers) << 8 | uint64_t(product.product) << 4 |
                     uint64_t(product.a_is_mn_major) << 2 | uint64_t(product.b_is_mn_major) << 1 |
                     uint64_t(product.accumulate);
    follow_log({"wgmma", {product.a, product.b, flags, product.a_registers != nullptr}}, site);
    if (!mine.fenced) fail(site, "wgmma: no wgmma_fence since the last wait");
    PendingProduct pending = {product, site, warp() % kWarpsPerGroup * kRowsPerWarp, {}, {}, false, false, {}};
    for (int lane = 0; lane < kLanes; ++lane) {
      const WarpgroupProduct& of_lane = *lanes[lane]->product;
      if (of_lane.a != product.a || of_lane.b != product.b || of_lane.accumulate != product.accumulate)
        fail(site, "wgmma: lane %d has another descriptor or another `accumulate`", lane);
      pending.d[lane] = lanes[lane]->d;
      if (product.a_registers)
        memcpy(pending.a_registers[lane], of_lane.a_registers, sizeof(pending.a_registers[lane]));
    }
    // Behind one that writes the same registers, its turn comes after that.
    bool first = !is_under_way(mine, pending.d[0]);
    pending.done = first && do_it_now();
    // Until the wait others must leave the operands alone: they count as read at both ends.
    if (pending.done)
      do_product(pending);
    else
      read_operands(pending);
    if (first && !pending.done) {
      pending.has_initial = true;
      for (int lane = 0; lane < kLanes; ++lane)
        for (int r = 0; r < product.registers; ++r)
          pending.initial[lane][r] = std::exchange(pending.d[lane][r], kUnderWay);
    }
    mine.open.push_back(pending);
  });
}

template <class Work>
static void of_the_warp(const char* what, uint64_t detail, Site site, Work work) {
  char nothing = 0;
  warp_collective(what, 0xFFFFFFFF, nothing, true, site, [&](auto) {
    follow_log({what, {detail, 0, 0, 0}}, site);
    work(warps[warp()]);
  });
}

void fence_products(Site site) {
  of_the_warp("wgmma_fence", 0, site, [](WarpProducts& mine) { mine.fenced = true; });
}

void commit_products(Site site) {
  of_the_warp("wgmma_commit", 0, site, [](WarpProducts& mine) {
    mine.committed.push_back(mine.open);
    mine.open.clear();
  });
}

void wait_for_products(int pending, Site site) {
  of_the_warp("wgmma_wait", uint64_t(pending), site, [=](WarpProducts& mine) {
    while (int(mine.committed.size()) > pending) {
      for (const PendingProduct& product : mine.committed.front()) {
        if (product.done)
          read_operands(product);
        else
          do_product(product);
      }
      mine.committed.pop_front();
    }
    mine.fenced = false;
  });
}

void change_registers(int count, Site site) {
  of_the_warp("setmaxnreg", uint64_t(count), site, [](WarpProducts&) {});
}

void end_block_products() {
  for (auto& [index, mine] : warps) {
    bool waited = mine.open.empty();
    for (const ProductGroup& group : mine.committed) waited = waited && group.empty();
    if (!waited) fail(here(), "warp %d ends while its wgmma are under way", index);
  }
  for (const auto& [group, log] : logs)
    for (int index = group * kWarpsPerGroup; index < (group + 1) * kWarpsPerGroup; ++index)
      if (warps[index].next_in_log != log.size())
        fail(here(), "warp %d did less than the other warps of its warpgroup", index);
  warps.clear();
  logs.clear();
}

}  // namespace emulator
