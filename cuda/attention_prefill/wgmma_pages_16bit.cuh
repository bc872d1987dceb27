// How pages of 16 bits come to the stages of the sm_90a prefill kernel: by TMA, as they are.
#pragma once

#include "attention_prefill/tiles.cuh"
#include "attention_prefill/wgmma_layout.cuh"

namespace treadle::cuda::prefill {

/// The producer's thread: fills the next stage of K (kv = 0) or V with a key block.
template <int kDim>
struct PageLoader16Bit {
  using L = Layout<kDim, false>;
  Ring<kStages> ring[2];

  __device__ __forceinline__ void load(const Params& p, const CUtensorMap* kv_map, uint32_t base,
                                       const Barriers& bars, const int32_t* table, int context_len,
                                       int kv_head, int kv, int block) {
    constexpr int kPages = L::kKeys / 64;
    Ring<kStages>& r = ring[kv];
    int rows[kPages];
    int pages = 0;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = block * kPages + i;
      if (page * 64 >= context_len) break;
      rows[i] =
          (((__ldg(table + page) * p.num_layers + p.layer) * 2 + kv) * p.kv_heads + kv_head) * 64;
      ++pages;
    }
    mbarrier_wait(bars.empty(kv, r.stage), r.parity ^ 1);
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
  }
};

}  // namespace treadle::cuda::prefill
