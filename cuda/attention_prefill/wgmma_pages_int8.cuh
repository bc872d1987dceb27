// How pages of int8 come to the stages of the sm_90a prefill kernel: by bulk copies to a staging
// area, where other warps make T of them and put it where TMA would have.
#pragma once

#include <type_traits>

#include "attention_prefill/tiles.cuh"
#include "attention_prefill/wgmma_layout.cuh"
#include "common/int8.cuh"

namespace treadle::cuda::prefill {

/// The producer's thread: fills the next place of the staging area with a key block of K (kv = 0)
/// or V.
template <int kDim>
struct PageLoaderInt8 {
  using L = Layout<kDim, true>;
  Ring<L::kStaged> staged;

  __device__ __forceinline__ void load(const Params& p, const CUtensorMap* /*kv_map*/,
                                       uint32_t base, const Barriers& bars, const int32_t* table,
                                       int context_len, int kv_head, int kv, int block) {
    constexpr int kPages = L::kKeys / 64;
    const int first = block * kPages;
    const int pages = min(kPages, (context_len + 63) / 64 - first);
    mbarrier_wait(bars.staged_empty(staged.stage), staged.parity ^ 1);
    const uint32_t full = bars.staged_full(staged.stage);
    mbarrier_expect(full, pages * 64 * (kDim + 8));
    const uint32_t dst = base + L::kStaging + staged.stage * L::kStagedBytes;
    for (int i = 0; i < pages; ++i) {
      const Int8Page page = int8_page<kDim>(p, __ldg(table + first + i), kv, kv_head);
      bulk_load(dst + i * 64 * kDim, page.elements, 64 * kDim, full);
      bulk_load(dst + L::kStagedScales + i * 512, page.scales, 512, full);
    }
    staged.next();
  }
};

/// Which eight elements of a key block a thread makes. With a warpgroup, rows are cut into 16
/// pieces of eight (8 at head_dim 64), the last of them empty at 80 and 96: a thread's rows are
/// then a multiple of 8 apart, and its addresses differ by constants.
template <int kDim>
struct Eights {
  using L = Layout<kDim, true>;
  static constexpr int kThreads = Groups<kDim, true>::kConvertThreads;
  static constexpr int kPieces = kDim > 128 ? 32 : kDim > 64 ? 16 : 8;
  static constexpr int kAll = L::kKeys * kPieces;
  static constexpr int kCount = (kAll + kThreads - 1) / kThreads;
  static constexpr bool kEven = kThreads % (8 * kPieces) == 0;

  uint32_t thread;

  __device__ __forceinline__ bool exists(int i) const {
    return (kDim == kPieces * 8 || piece(i) < kDim / 8) && (kEven || row(i) < L::kKeys);
  }
  __device__ __forceinline__ uint32_t row(int i) const {
    return kEven ? thread / kPieces + i * (kThreads / kPieces) : (thread + i * kThreads) / kPieces;
  }
  __device__ __forceinline__ uint32_t piece(int i) const {
    return (kEven ? thread : thread + i * kThreads) % kPieces;
  }
  __device__ __forceinline__ uint32_t from(int i) const { return row(i) * kDim + piece(i) * 8; }
  __device__ __forceinline__ uint32_t to(int i) const {
    const uint32_t swizzled = piece(i) % 8 ^ row(kEven ? 0 : i) % 8;
    return piece(i) / 8 * L::kKvHalf + row(i) * 128 + swizzled * 16;
  }
};

/// One key block from the staging area to a stage; `valid` keys of it exist, the others become
/// zeros.
template <class T, int kDim>
__device__ __forceinline__ void restore_block(const uint8_t* from, uint32_t to, int valid,
                                              int thread) {
  using E = Eights<kDim>;
  constexpr int kBatch = 4;  // whose loads wait together
  constexpr int kBatches = (E::kCount + kBatch - 1) / kBatch;
  struct Batch {
    uint2 bytes[kBatch];
    float2 scales[kBatch];
  };
  const E at{static_cast<uint32_t>(thread)};
  auto load = [&](Batch& b, int first) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (!at.exists(first + k)) continue;
      b.bytes[k] = *reinterpret_cast<const uint2*>(from + at.from(first + k));
      b.scales[k] = reinterpret_cast<const float2*>(from + E::L::kStagedScales)[at.row(first + k)];
    }
  };
  auto store = [&](const Batch& b, int first) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (!at.exists(first + k)) continue;
      store_shared(to + at.to(first + k), restore8<T>(b.bytes[k], {b.scales[k].x, b.scales[k].y}));
    }
  };
  if constexpr (E::kEven) {  // each batch is read before the one ahead of it is stored
    Batch b[2];
    load(b[0], 0);
#pragma unroll
    for (int i = 0; i < kBatches; ++i) {
      if (i + 1 < kBatches) load(b[(i + 1) % 2], (i + 1) * kBatch);
      store(b[i % 2], i * kBatch);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kBatches; ++i) {
      Batch b;
      load(b, i * kBatch);
      store(b, i * kBatch);
    }
  }
  if (valid >= E::L::kKeys) return;
#pragma unroll 1
  for (int i = 0; i < E::kCount; ++i) {
    if (at.exists(i) && static_cast<int>(at.row(i)) >= valid) {
      store_shared(to + at.to(i), make_uint4(0, 0, 0, 0));
    }
  }
}

/// Groups::kConvertThreads threads: make T of the staged int8, in the order in which the producer
/// loads it: the last K, then each K and the V after it, and the first V.
template <class T, int kDim>
__device__ __forceinline__ void convert(const uint8_t* shared, const Barriers& bars, int thread) {
  using L = Layout<kDim, true>;
  const uint32_t base = shared_address(shared);
  const auto* slot = reinterpret_cast<const TileInfo*>(shared + L::kTile);
  Ring<L::kStaged> staged;
  int before = 0;  // key blocks of earlier tiles
  for (int phase = 0;; phase ^= 1) {
    mbarrier_wait(bars.tile_full(), phase);
    const TileInfo t = *slot;
    mbarrier_arrive(bars.tile_empty());
    if (t.done != 0) break;
    const int count = t.key_end - t.key_begin;
#pragma unroll 1
    for (int i = 0; i < 2 * count; ++i) {
      const int kv = i + 1 == 2 * count || (i > 0 && i % 2 == 0) ? 1 : 0;
      const int done = kv != 0 ? (i + 1) / 2 - 1 : (i + 1) / 2;  // blocks of the same kind
      const int stage = (before + done) % kStages;
      const int parity = (before + done) / kStages % 2;
      mbarrier_wait(bars.staged_full(staged.stage), staged.parity);
      mbarrier_wait(bars.empty(kv, stage), parity ^ 1);
      restore_block<T, kDim>(shared + L::kStaging + staged.stage * L::kStagedBytes,
                             base + L::kQBytes + (kv * kStages + stage) * L::kKvBytes,
                             t.context_len - (t.key_end - 1 - done) * L::kKeys, thread);
      async_proxy_fence();
      mbarrier_arrive(bars.full(kv, stage));
      mbarrier_arrive(bars.staged_empty(staged.stage));
      staged.next();
    }
    before += count;
  }
}

}  // namespace treadle::cuda::prefill
