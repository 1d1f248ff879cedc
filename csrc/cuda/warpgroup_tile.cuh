// A tile of a product on Hopper's warpgroup instructions: one producer, two consumers, persistent over tiles.
//
// A producer thread keeps `stages` steps of both operands on their way by TMA; two warpgroups multiply 64 x block_n
// each and hand stages back. A step is 128 bytes of k. At 128 x 256 of 16 bits it loads 48 KiB (four stages: 192 of the
// 227 KiB) for 2.1 M multiplications, 1024 clocks of the matrix units: 48 bytes a clock and multiprocessor, which L2
// can give; 128 x 128 would ask for 64. Its sums are 128 registers a thread: the producer leaves most of its own to the
// consumers. Sums leave through 64 x 32 staged in shared memory, while the producer already loads the next tile.
//
// In shared memory operands lie in lines of 128 bytes with 128-byte swizzle: K-major as [rows, 128 bytes of k],
// MN-major as blocks of [64 k, 64 rows].
#pragma once

#include <gemm_epilogue.cuh>
#include <warpgroup.cuh>

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;
constexpr int kTileThreads = kWarpgroup * (kConsumers + 1);
constexpr int kRowsEach = 64;      // of a consumer
constexpr int kRoundColumns = 32;  // staged at a time
constexpr int kLineBytes = 128;

template <class T>
struct WarpgroupUnit {
  typedef float Sum;
};
template <>
struct WarpgroupUnit<int8> {
  typedef int Sum;
};

// Which stage is next, and the parity of its barriers' phase.
template <int stages>
struct PipelinePlace {
  int stage = 0, parity = 0;

  DEVICE void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

template <int stages>
struct PipelineBarriers {
  mbarrier full[stages], empty[stages];

  // For all threads of the block.
  DEVICE void init() {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < stages; ++stage) {
        mbarrier_init(&full[stage], 1);
        mbarrier_init(&empty[stage], kConsumers * kWarpgroup / kWarp);
      }
      mbarrier_init_fence();
    }
    __syncthreads();
  }
};

// Item i of a launch is tile i % tiles of split i / tiles.
struct WorkItem {
  int64 first_row, first_col, split, first_k, last_k;
};

struct WorkList {
  int64 M, N, K, k_per_split, splits, block_m, block_n;

  DEVICE int64 tiles_m() const { return ceil_div(M, block_m); }
  DEVICE int64 tiles_n() const { return ceil_div(N, block_n); }
  DEVICE int64 count() const { return tiles_m() * tiles_n() * splits; }
  DEVICE WorkItem item(int64 index) const {
    int64 tiles = tiles_m() * tiles_n(), split = index / tiles;
    TilePlace place = tile_place(index % tiles, tiles_m(), tiles_n());
    int64 first_k = split * k_per_split;
    return {place.row * block_m, place.col * block_n, split, first_k, min_of(first_k + k_per_split, K)};
  }
};

template <class T, int block_n, int stages, bool a_is_mn_major = false, bool b_is_mn_major = false>
struct WarpgroupTile {
  typedef typename WarpgroupUnit<T>::Sum Sum;
  typedef PipelineBarriers<stages> Barriers;
  typedef PipelinePlace<stages> Place;
  static constexpr int kBlockM = kConsumers * kRowsEach;
  static constexpr int kStepK = kLineBytes / int(sizeof(T));
  static constexpr int kBytesA = kBlockM * kLineBytes, kStageBytes = (kBlockM + block_n) * kLineBytes;
  static constexpr int kBlockBytes = kStepK * kLineBytes;  // an MN-major block of 64 rows
  static constexpr int kSums = block_n / 2;
  static constexpr int kRounds = block_n / kRoundColumns, kRoundPieces = kRoundColumns / kPiece;
  static constexpr int kRoundSums = kRowsEach * kRoundColumns;

  // One operand's part of a stage: one box where it is K-major, else one per 64 rows.
  template <bool is_mn_major, int rows>
  static DEVICE void load(uint8* shared, const TensorMap* map, mbarrier* full, int64 first_row, int64 k) {
    if constexpr (is_mn_major) {
#pragma unroll
      for (int block = 0; block < rows / 64; ++block)
        tensor_load_2d(shared + block * kBlockBytes, map, full, int(first_row) + block * 64, int(k));
    } else {
      tensor_load_2d(shared, map, full, int(k), int(first_row));
    }
  }

  // For one thread: fills stages for every item of this block, as fast as consumers empty them.
  static DEVICE void produce(uint8* shared, Barriers& barriers, const TensorMap* a, const TensorMap* b,
                             const WorkList& work) {
    tensor_map_prefetch(a);
    tensor_map_prefetch(b);
    Place place;
    for (int64 index = blockIdx.x; index < work.count(); index += gridDim.x) {
      WorkItem item = work.item(index);
      for (int64 k = item.first_k; k < item.last_k; k += kStepK, place.advance()) {
        uint8* stage = shared + place.stage * kStageBytes;
        mbarrier* full = &barriers.full[place.stage];
        mbarrier_wait(&barriers.empty[place.stage], place.parity ^ 1);
        mbarrier_arrive_expect(full, kStageBytes);
        load<a_is_mn_major, kBlockM>(stage, a, full, item.first_row, k);
        load<b_is_mn_major, block_n>(stage + kBytesA, b, full, item.first_col, k);
      }
    }
  }

  // The step-th 32 bytes of k of the rows from `lines` on.
  template <bool is_mn_major>
  static DEVICE uint64 descriptor(const uint8* lines, int step) {
    if constexpr (is_mn_major)
      return wgmma_descriptor(lines + step * 16 * kLineBytes, kBlockBytes, 8 * kLineBytes);
    else
      return wgmma_descriptor(lines + step * 32, 0, 8 * kLineBytes);
  }

  static DEVICE void release(Barriers& barriers, int stage) {
    __syncwarp();  // one lane speaks for all
    if (threadIdx.x % kWarp == 0) mbarrier_arrive(&barriers.empty[stage]);
  }

  // For a consumer: sums = its 64 rows of the item. One step's products stay under way while the next is waited for.
  static DEVICE void multiply(Sum (&sums)[kSums], uint8* shared, Barriers& barriers, Place& place, int consumer,
                              const WorkItem& item) {
    int previous = -1;
#pragma unroll 1
    for (int64 k = item.first_k; k < item.last_k; k += kStepK, place.advance()) {
      const uint8* a = shared + place.stage * kStageBytes + consumer * kRowsEach * kLineBytes;
      const uint8* b = shared + place.stage * kStageBytes + kBytesA;
      int accumulates = k > item.first_k;
      mbarrier_wait(&barriers.full[place.stage], place.parity);
      wgmma_keep(sums);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kLineBytes / 32; ++step) {
        uint64 a_step = descriptor<a_is_mn_major>(a, step), b_step = descriptor<b_is_mn_major>(b, step);
        if constexpr (sizeof(T) == 1)
          wgmma_int8(sums, a_step, b_step, step > 0 || accumulates);
        else
          wgmma<T, a_is_mn_major, b_is_mn_major>(sums, a_step, b_step, step > 0 || accumulates);
      }
      wgmma_commit();
      wgmma_keep(sums);
      wgmma_wait<1>();
      if (previous >= 0) release(barriers, previous);
      previous = place.stage;
    }
    wgmma_wait<0>();
    wgmma_keep(sums);
    release(barriers, previous);
  }

  // Where a piece of 8 columns of a staged row lies: rows 0 to 3 put the same piece into different banks.
  static DEVICE Sum* staged_piece(Sum* staged, int row, int piece) {
    return staged + row * kRoundColumns + (piece ^ (row % 4)) * kPiece;
  }

  // For a consumer: finishes its 64 rows. Rounds take turns between two buffers in `staged`: a thread that writes one
  // has seen all others leave it, at the round between.
  template <class Finish>
  static DEVICE void finish(const Sum (&sums)[kSums], Sum* staged, int consumer, const WorkItem& item,
                            const Finish& epilogue, Sum* partials) {
    int thread = threadIdx.x % kWarpgroup, lane = thread % kWarp, row = thread / kWarp * 16 + lane / 4;
    int rounds = int(min_of(ceil_div(epilogue.N - item.first_col, int64(kRoundColumns)), int64(kRounds)));
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      Sum* buffer = staged + round % 2 * kRoundSums;
      // A branch per round: registers cannot be indexed, and the epilogue's code is to exist once.
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        if (r == round) {
#pragma unroll
          for (int j = 0; j < kRoundPieces; ++j) {
            const Sum* pair = &sums[(r * kRoundPieces + j) * 4];
            Sum* place = staged_piece(buffer, row, j) + lane % 4 * 2;  // row + 8 is alike modulo 4
            store_vector(place, Vector<Sum, 2>{{pair[0], pair[1]}});
            store_vector(place + 8 * kRoundColumns, Vector<Sum, 2>{{pair[2], pair[3]}});
          }
        }
      }
      named_barrier_sync(1 + consumer, kWarpgroup);
      finish_block<kRowsEach, kRoundColumns, kWarpgroup>(
          epilogue, partials, item.split, item.first_row + consumer * kRowsEach, item.first_col + round * kRoundColumns,
          [&](int at_row, int at_col) { return staged_piece(buffer, at_row, at_col / kPiece) + at_col % kPiece; });
    }
    named_barrier_sync(1 + consumer, kWarpgroup);  // the next item starts with the first buffer
  }

  // The whole block. `partials` is null where each item is a whole tile.
  template <class Finish>
  static DEVICE void run(uint8* shared, Barriers& barriers, const TensorMap* a, const TensorMap* b,
                         const WorkList& work, const Finish& epilogue, Sum* partials) {
    barriers.init();
    int consumer = threadIdx.x / kWarpgroup - 1;
    if (consumer < 0) {
      warpgroup_leave_registers<40>();
      if (threadIdx.x == 0) produce(shared, barriers, a, b, work);
      return;
    }
    warpgroup_take_registers<232>();
    Sum* staged = reinterpret_cast<Sum*>(shared + stages * kStageBytes) + consumer * 2 * kRoundSums;
    Place place;
#pragma unroll 1
    for (int64 index = blockIdx.x; index < work.count(); index += gridDim.x) {
      WorkItem item = work.item(index);
      Sum sums[kSums];
      multiply(sums, shared, barriers, place, consumer, item);
      finish(sums, staged, consumer, item, epilogue, partials);
    }
  }
};
