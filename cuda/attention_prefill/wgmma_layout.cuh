// Shared memory of the sm_90a prefill kernel, its barriers, and who its threads are.
#pragma once

#include "common/mbarrier.cuh"

namespace treadle::cuda::prefill {

constexpr int kRows = 128;  // query tokens of a tile
constexpr int kStages = 2;
constexpr int kGroupThreads = 128;
constexpr int kTurn = 2;   // named barriers: whose turn it is
constexpr int kFence = 4;  // named barriers: one consumer's threads

/// A box of 64 columns is rows x 128 bytes; kHalves boxes side by side hold a head (the last one is
/// padded with zeros for head_dim 80 and 96).
template <int kDim, bool kInt8>
struct Layout {
  static constexpr int kKeys = kDim > 128 ? 64 : 128;
  static constexpr int kHalves = (kDim + 63) / 64;
  static constexpr int kQHalf = kRows * 128;
  static constexpr int kKvHalf = kKeys * 128;
  static constexpr int kQBytes = kHalves * kQHalf;
  static constexpr int kKvBytes = kHalves * kKvHalf;
  // int8: pages as they come, [kKeys][kDim] and their KvScales, before they become T.
  static constexpr int kStaged = kInt8 ? (kDim > 128 ? 2 : 3) : 0;
  static constexpr int kStagedScales = kKeys * kDim;
  static constexpr int kStagedBytes = kStagedScales + kKeys * 8;
  static constexpr int kStaging = kQBytes + 2 * kStages * kKvBytes;
  static constexpr int kBarriers = kStaging + kStaged * kStagedBytes;
  static constexpr int kTile = kBarriers + 192;
  static constexpr int kStarts = kTile + 64;  // then int32 [sequences + 1]
};

/// Warpgroups: the producer, with int8 one that converts, two consumers. At head_dim 256 the
/// consumers' registers leave no room for a fourth, and the producer's other three warps convert.
template <int kDim, bool kInt8>
struct Groups {
  static constexpr bool kConverter = kInt8 && kDim <= 128;
  static constexpr int kConvertThreads = !kInt8 ? 0 : kConverter ? kGroupThreads : 96;
  static constexpr int kFirstConsumer = kConverter ? 2 : 1;
  static constexpr int kThreads = (kFirstConsumer + 2) * kGroupThreads;
  // Registers of a thread, which starts with as many as fit. No more may be wanted than there are:
  // a consumer waits for ever for registers that nobody gives up.
  static constexpr int kProducerRegisters = kConverter ? 56 : kInt8 ? 72 : 40;
  static constexpr int kConverterRegisters = kConverter ? 72 : 0;
  static constexpr int kConsumerRegisters = kConverter ? 192 : kInt8 ? 216 : 232;
  static constexpr int kAtStart = 65536 / kThreads / 8 * 8;
  static_assert(kProducerRegisters + kConverterRegisters + 2 * kConsumerRegisters <=
                kThreads / kGroupThreads * kAtStart);
};

/// Addresses of the barriers.
struct Barriers {
  uint32_t base;
  __device__ uint32_t q_full() const { return base; }
  __device__ uint32_t q_empty() const { return base + 8; }
  __device__ uint32_t tile_full() const { return base + 16; }
  __device__ uint32_t tile_empty() const { return base + 24; }
  __device__ uint32_t full(int kv, int stage) const {
    return base + 32 + (kv * kStages + stage) * 8;
  }
  __device__ uint32_t empty(int kv, int stage) const {
    return base + 64 + (kv * kStages + stage) * 8;
  }
  __device__ uint32_t staged_full(int i) const { return base + 96 + i * 8; }
  __device__ uint32_t staged_empty(int i) const { return base + 120 + i * 8; }

  /// By one thread, before any other uses them.
  template <int kDim, bool kInt8>
  __device__ void init() const {
    constexpr int kConvertThreads = Groups<kDim, kInt8>::kConvertThreads;
    mbarrier_init(q_full(), 1);
    mbarrier_init(q_empty(), 2);
    mbarrier_init(tile_full(), 1);
    mbarrier_init(tile_empty(), 2 * kGroupThreads + kConvertThreads);
    for (int kv = 0; kv < 2; ++kv) {
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_init(full(kv, stage), kInt8 ? kConvertThreads : 1);
        mbarrier_init(empty(kv, stage), 2);
      }
    }
    for (int stage = 0; stage < Layout<kDim, kInt8>::kStaged; ++stage) {
      mbarrier_init(staged_full(stage), 1);
      mbarrier_init(staged_empty(stage), kConvertThreads);
    }
    mbarrier_init_fence();
  }
};

}  // namespace treadle::cuda::prefill
