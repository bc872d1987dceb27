// The sm_90a prefill kernel: one producer warp that moves Q, K and V by TMA and two consumer
// warpgroups of 64 query rows each, over persistent blocks of threads that draw tiles from a
// counter.
//
// A tile is 128 query tokens of one head. Key blocks of kKeys are visited from the last to the
// first, so that the masked ones come first. While a consumer computes the softmax of one block,
// its product with V of the block before runs, and the other consumer's products fill the rest: the
// two take turns at issuing (named barriers kTurn, kTurn + 1).
//
// A pool of int8 comes to a staging area by bulk copies, and the producer's other three warps make
// T of it where TMA would have put it.
#pragma once

#include "attention_prefill/tiles.cuh"
#include "common/int8.cuh"
#include "common/mbarrier.cuh"
#include "common/wgmma.cuh"

namespace treadle::cuda::prefill {

constexpr int kRows = 128;  // query tokens of a tile
constexpr int kStages = 2;
constexpr int kGroupThreads = 128;
constexpr int kWgmmaThreads = 3 * kGroupThreads;
constexpr int kTurn = 2;   // named barriers: whose turn it is
constexpr int kFence = 4;  // named barriers: one consumer's threads
constexpr int kConvertThreads = 96;

/// Shapes in shared memory. A box of 64 columns is rows x 128 bytes; kHalves boxes side by side
/// hold a head (the last one is padded with zeros for head_dim 80 and 96).
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
};

/// A position in the ring of stages.
template <int kCount>
struct RingOf {
  int stage = 0;
  int phase = 0;
  __device__ void next() {
    if (++stage == kCount) {
      stage = 0;
      phase ^= 1;
    }
  }
};

using Ring = RingOf<kStages>;

/// One thread: draws tiles and keeps the stages filled, with int8 the staging area.
template <class T, int kDim, bool kInt8>
__device__ __forceinline__ void produce(const Params& p, const CUtensorMap* q_map,
                                        const CUtensorMap* kv_map, uint8_t* shared,
                                        const Barriers& bars, int total) {
  using L = Layout<kDim, kInt8>;
  const uint32_t base = shared_address(shared);
  const auto* starts = reinterpret_cast<const int32_t*>(shared + L::kStarts);
  auto* slot = reinterpret_cast<TileInfo*>(shared + L::kTile);
  const int group = p.heads / p.kv_heads;
  Ring ring[2];
  RingOf<kInt8 ? L::kStaged : 1> staged;
  int phase = 0;
  int item = atomicAdd(p.counters, 1);
  for (;;) {
    int sequence = 0;
    const TileInfo t = tile_info<kRows, L::kKeys>(p, starts, total, item, &sequence);
    mbarrier_wait(bars.tile_empty(), phase ^ 1);
    *slot = t;
    mbarrier_arrive(bars.tile_full());
    if (t.done != 0) break;
    const int next_item = atomicAdd(p.counters, 1);

    const int32_t* table = p.block_tables + int64_t{sequence} * p.block_table_stride;
    const int kv_head = t.head / group;
    constexpr int kPages = L::kKeys / 64;
    auto stage_int8 = [&](int kv, int block) {
      const int first = block * kPages;
      const int pages = min(kPages, (t.context_len + 63) / 64 - first);
      mbarrier_wait(bars.staged_empty(staged.stage), staged.phase ^ 1);
      const uint32_t full = bars.staged_full(staged.stage);
      mbarrier_expect(full, pages * 64 * (kDim + 8));
      const uint32_t dst = base + L::kStaging + staged.stage * L::kStagedBytes;
      for (int i = 0; i < pages; ++i) {
        const Int8Page page = int8_page<kDim>(p, __ldg(table + first + i), kv, kv_head);
        bulk_load(dst + i * 64 * kDim, page.elements, 64 * kDim, full);
        bulk_load(dst + L::kStagedScales + i * 512, page.scales, 512, full);
      }
      staged.next();
    };
    auto load = [&](int kv, int block) {
      if constexpr (kInt8) return stage_int8(kv, block);
      Ring& r = ring[kv];
      int rows[kPages];
      int pages = 0;
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        const int page = block * kPages + i;
        if (page * 64 >= t.context_len) break;
        rows[i] =
            (((__ldg(table + page) * p.num_layers + p.layer) * 2 + kv) * p.kv_heads + kv_head) * 64;
        ++pages;
      }
      mbarrier_wait(bars.empty(kv, r.stage), r.phase ^ 1);
      mbarrier_expect(bars.full(kv, r.stage), pages * L::kHalves * 64 * 128);
      const uint32_t dst = base + L::kQBytes + (kv * kStages + r.stage) * L::kKvBytes;
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        if (i >= pages) break;
#pragma unroll
        for (int h = 0; h < L::kHalves; ++h) {
          tma_load(dst + h * L::kKvHalf + i * 64 * 128, kv_map, h * 64, rows[i],
                   bars.full(kv, r.stage));
        }
      }
      r.next();
    };

    load(0, t.key_end - 1);
    mbarrier_wait(bars.q_empty(), phase ^ 1);
    mbarrier_expect(bars.q_full(), L::kQBytes);
#pragma unroll
    for (int h = 0; h < L::kHalves; ++h) {
      tma_load(base + h * L::kQHalf, q_map, t.head * kDim + h * 64, t.first_token, bars.q_full());
    }
    for (int block = t.key_end - 2; block >= t.key_begin; --block) {
      load(0, block);
      load(1, block + 1);
    }
    load(1, t.key_begin);
    item = next_item;
    phase ^= 1;
  }
  // The last block of threads to finish leaves the counters at zero for the next launch.
  __threadfence();
  if (atomicAdd(p.counters + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

/// Three warps: make T of the staged int8, in the order in which produce() loads it. Keys that do
/// not exist become zeros.
template <class T, int kDim>
__device__ __forceinline__ void convert(const uint8_t* shared, const Barriers& bars, int thread) {
  using L = Layout<kDim, true>;
  constexpr int kChunks = kDim / 8;  // of 8 elements in a row
  const uint32_t base = shared_address(shared);
  const auto* slot = reinterpret_cast<const TileInfo*>(shared + L::kTile);
  Ring ring[2];
  RingOf<L::kStaged> staged;
  auto block_of = [&](const TileInfo& t, int kv, int block) {
    Ring& r = ring[kv];
    const int valid = t.context_len - block * L::kKeys;
    mbarrier_wait(bars.staged_full(staged.stage), staged.phase);
    mbarrier_wait(bars.empty(kv, r.stage), r.phase ^ 1);
    const uint8_t* from = shared + L::kStaging + staged.stage * L::kStagedBytes;
    const uint32_t to = base + L::kQBytes + (kv * kStages + r.stage) * L::kKvBytes;
#pragma unroll 4
    for (int i = thread; i < L::kKeys * kChunks; i += kConvertThreads) {
      const int row = i / kChunks;
      const int c = i % kChunks;
      const float2 s = reinterpret_cast<const float2*>(from + L::kStagedScales)[row];
      const uint4 x = restore8<T>(reinterpret_cast<const uint2*>(from)[i], {s.x, s.y});
      store_shared(to + c / 8 * L::kKvHalf + row * 128 + ((c % 8) ^ (row & 7)) * 16,
                   row < valid ? x : make_uint4(0, 0, 0, 0));
    }
    async_proxy_fence();
    __syncwarp();
    if (thread % 32 == 0) {
      mbarrier_arrive(bars.full(kv, r.stage));
      mbarrier_arrive(bars.staged_empty(staged.stage));
    }
    r.next();
    staged.next();
  };
  for (int phase = 0;; phase ^= 1) {
    mbarrier_wait(bars.tile_full(), phase);
    const TileInfo t = *slot;
    mbarrier_arrive(bars.tile_empty());
    if (t.done != 0) break;
    block_of(t, 0, t.key_end - 1);
    for (int block = t.key_end - 2; block >= t.key_begin; --block) {
      block_of(t, 0, block);
      block_of(t, 1, block + 1);
    }
    block_of(t, 1, t.key_begin);
  }
}

/// One warpgroup, 64 rows of each tile.
template <class T, int kDim, bool kInt8>
struct Consumer {
  using L = Layout<kDim, kInt8>;
  static constexpr int kKeys = L::kKeys;
  static constexpr int kSteps = kKeys / 16;

  const Params& p;
  const Barriers& bars;
  uint8_t* shared;
  int group;  // 0 or 1
  int thread, warp, lane;

  float s[kKeys / 2];
  float out[kDim / 2];
  uint32_t probs[kSteps][4];
  float max[2], sum[2];
  Ring k_ring, v_ring;

  __device__ __forceinline__ void issue_scores(uint32_t q) {
    const uint32_t k = shared_address(shared) + L::kQBytes + k_ring.stage * L::kKvBytes;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int half = step / 4;
      const int at = step % 4 * 32;
      Wgmma<T, kKeys>::ss(s, wgmma_descriptor(q + half * L::kQHalf + at, 16, 1024),
                          wgmma_descriptor(k + half * L::kKvHalf + at, 16, 1024), step > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void issue_values() {
    const uint32_t v = shared_address(shared) + L::kQBytes + (kStages + v_ring.stage) * L::kKvBytes;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Wgmma<T, kDim>::rs(out, probs[step], wgmma_descriptor(v + step * 16 * 128, L::kKvHalf, 1024));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release(uint32_t barrier) {
    if (thread == 0) mbarrier_arrive(barrier);
  }

  /// Element i of s is row (i >> 1) & 1 of this thread's two, column (i >> 2) * 8 + ...
  __device__ __forceinline__ void mask(const TileInfo& t, int block) {
    const int row = group * 64 + warp * 16 + (lane >> 2);
    const int column = block * kKeys + (lane & 3) * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int position = min(t.first_pos + row + 8 * h, t.context_len - 1);
      const int last = position - column;
      const int first = p.window > 0 ? last - p.window + 1 : -(1 << 30);
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int at = i * 8 + j;
          if (at > last || at < first) s[i * 4 + h * 2 + j] = -INFINITY;
        }
      }
    }
  }

  /// s becomes exponentials; returns what earlier sums must be multiplied by.
  __device__ __forceinline__ void softmax(float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = s[2 * h];
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        top = fmaxf(top, fmaxf(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]));
      }
      const float now = fmaxf(max[h], quad_max(top));
      const float base = now == -INFINITY ? 0.0F : now * p.scale_log2;
      factor[h] = exp2_approx(max[h] * p.scale_log2 - base);
      max[h] = now;
      float add = 0.0F;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        float& a = s[4 * i + 2 * h];
        float& b = s[4 * i + 2 * h + 1];
        a = exp2_approx(fmaf(a, p.scale_log2, -base));
        b = exp2_approx(fmaf(b, p.scale_log2, -base));
        add += a + b;
      }
      sum[h] = sum[h] * factor[h] + add;
    }
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float* a = s + step * 8;
      probs[step][0] = pack2<T>(a[0], a[1]);
      probs[step][1] = pack2<T>(a[2], a[3]);
      probs[step][2] = pack2<T>(a[4], a[5]);
      probs[step][3] = pack2<T>(a[6], a[7]);
    }
  }

  __device__ __forceinline__ bool needs_mask(const TileInfo& t, int block) const {
    const int first = t.first_pos + group * 64;
    return (block + 1) * kKeys > min(first, t.context_len - 1) + 1 ||
           (p.window > 0 && block * kKeys < first + 64 - p.window);
  }

  /// Rows of V that no key fills may hold anything, and 0 * NaN is NaN.
  __device__ __forceinline__ void zero_values(int valid) {
    uint8_t* v = shared + L::kQBytes + (kStages + v_ring.stage) * L::kKvBytes;
    const int chunks = (kKeys - valid) * 8;
    for (int i = thread; i < chunks * L::kHalves; i += kGroupThreads) {
      *reinterpret_cast<uint4*>(v + i / chunks * L::kKvHalf + valid * 128 + i % chunks * 16) =
          make_uint4(0, 0, 0, 0);
    }
    async_proxy_fence();
    named_sync(kFence + group, kGroupThreads);
  }

  __device__ __forceinline__ void values_ready(const TileInfo& t, int block) {
    mbarrier_wait(bars.full(1, v_ring.stage), v_ring.phase);
    if (!kInt8 && block == t.key_end - 1 && t.key_end * kKeys > t.context_len) {
      zero_values(t.context_len - block * kKeys);
    }
  }

  __device__ __forceinline__ void tile(const TileInfo& t, int q_phase) {
    const uint32_t q = shared_address(shared) + group * 64 * 128;
#pragma unroll
    for (float& x : out) x = 0.0F;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0F;
    float factor[2];

    mbarrier_wait(bars.q_full(), q_phase);
    int block = t.key_end - 1;
    mbarrier_wait(bars.full(0, k_ring.stage), k_ring.phase);
    issue_scores(q);
    wgmma_wait<0>();
    wgmma_hold(s);
    release(bars.empty(0, k_ring.stage));
    k_ring.next();
    if (needs_mask(t, block)) mask(t, block);
    softmax(factor);
    pack();

    for (--block; block >= t.key_begin; --block) {
      mbarrier_wait(bars.full(0, k_ring.stage), k_ring.phase);
      named_sync(kTurn + group, 2 * kGroupThreads);
      issue_scores(q);
      values_ready(t, block + 1);
      issue_values();
      named_arrive(kTurn + 1 - group, 2 * kGroupThreads);
      wgmma_wait<1>();
      wgmma_hold(s);
      release(bars.empty(0, k_ring.stage));
      k_ring.next();
      if (needs_mask(t, block)) mask(t, block);
      softmax(factor);
      wgmma_wait<0>();
      wgmma_hold(out);
      release(bars.empty(1, v_ring.stage));
      v_ring.next();
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[i] *= factor[(i >> 1) & 1];
      pack();
    }
    release(bars.q_empty());
    values_ready(t, t.key_begin);
    issue_values();
    wgmma_wait<0>();
    wgmma_hold(out);
    release(bars.empty(1, v_ring.stage));
    v_ring.next();
    store(t);
  }

  /// out / sum to global memory, 16 bytes a thread: the four threads of a row exchange their column
  /// pairs so that each holds eight neighbours.
  __device__ __forceinline__ void store(const TileInfo& t) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float l = quad_sum(sum[h]);
      inverse[h] = l > 0.0F ? 1.0F / l : 0.0F;
    }
    const int c = lane & 3;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group * 64 + warp * 16 + (lane >> 2) + 8 * h;
      T* to = static_cast<T*>(p.out) + (int64_t{t.first_token + row} * p.heads + t.head) * kDim;
#pragma unroll
      for (int base = 0; base < kDim / 8; base += 4) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = base + i < kDim / 8 ? base + i : 0;
          w[i] = pack2<T>(out[4 * n + 2 * h] * inverse[h], out[4 * n + 2 * h + 1] * inverse[h]);
        }
        transpose_quad(w, c);
        if (row < t.rows && base + c < kDim / 8) {
          *reinterpret_cast<uint4*>(to + (base + c) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
        }
      }
    }
  }

  /// Word i of lane c goes to word c of lane i.
  static __device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int c) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffU, (c & 1) != 0 ? w[i] : w[i + 1], 1);
      if ((c & 1) != 0)
        w[i] = other;
      else
        w[i + 1] = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t other = __shfl_xor_sync(0xffffffffU, (c & 2) != 0 ? w[i] : w[i + 2], 2);
      if ((c & 2) != 0)
        w[i] = other;
      else
        w[i + 2] = other;
    }
  }
};

template <class T, int kDim, bool kInt8>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    attention_prefill_wgmma_kernel(const __grid_constant__ Params p,
                                   const __grid_constant__ CUtensorMap q_map,
                                   const __grid_constant__ CUtensorMap kv_map) {
  using L = Layout<kDim, kInt8>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Barriers bars{shared_address(shared) + L::kBarriers};
  // One value for the whole warp, so that role branches are uniform.
  const int group = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
  if (threadIdx.x == 0) {
    mbarrier_init(bars.q_full(), 1);
    mbarrier_init(bars.q_empty(), 2);
    mbarrier_init(bars.tile_full(), 1);
    mbarrier_init(bars.tile_empty(), 2 * kGroupThreads + (kInt8 ? kConvertThreads : 0));
    for (int kv = 0; kv < 2; ++kv) {
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_init(bars.full(kv, stage), kInt8 ? kConvertThreads / 32 : 1);
        mbarrier_init(bars.empty(kv, stage), 2);
      }
    }
    for (int stage = 0; stage < L::kStaged; ++stage) {
      mbarrier_init(bars.staged_full(stage), 1);
      mbarrier_init(bars.staged_empty(stage), kConvertThreads / 32);
    }
    mbarrier_init_fence();
    tma_prefetch_map(&q_map);
    tma_prefetch_map(&kv_map);
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();

  if (group == 0) {
    registers_decrease<kInt8 ? 72 : 40>();
    if (threadIdx.x < 32) {
      const int total =
          plan_tiles<kRows>(p, reinterpret_cast<int32_t*>(shared + L::kStarts), threadIdx.x);
      if (threadIdx.x == 0) produce<T, kDim, kInt8>(p, &q_map, &kv_map, shared, bars, total);
    } else if constexpr (kInt8) {
      convert<T, kDim>(shared, bars, static_cast<int>(threadIdx.x) - 32);
    }
  } else {
    registers_increase<kInt8 ? 216 : 232>();
    const int thread = threadIdx.x % kGroupThreads;
    Consumer<T, kDim, kInt8> c{p, bars, shared, group - 1, thread, thread / 32, thread % 32};
    if (group == 2) named_arrive(kTurn, 2 * kGroupThreads);
    const auto* slot = reinterpret_cast<const TileInfo*>(shared + L::kTile);
    for (int phase = 0;; phase ^= 1) {
      mbarrier_wait(bars.tile_full(), phase);
      const TileInfo t = *slot;
      mbarrier_arrive(bars.tile_empty());
      if (t.done != 0) break;
      c.tile(t, phase);
    }
  }
}

}  // namespace treadle::cuda::prefill
