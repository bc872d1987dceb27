// The consumers of the sm_90a prefill kernel: scores, softmax and the product with V of 64 query
// rows.
#pragma once

#include "attention_prefill/tiles.cuh"
#include "attention_prefill/wgmma_layout.cuh"
#include "common/wgmma.cuh"

namespace treadle::cuda::prefill {

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
  Ring<kStages> k_ring, v_ring;

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
    mbarrier_wait(bars.full(1, v_ring.stage), v_ring.parity);
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
    mbarrier_wait(bars.full(0, k_ring.stage), k_ring.parity);
    issue_scores(q);
    wgmma_wait<0>();
    wgmma_hold(s);
    release(bars.empty(0, k_ring.stage));
    k_ring.next();
    if (needs_mask(t, block)) mask(t, block);
    softmax(factor);
    pack();

    for (--block; block >= t.key_begin; --block) {
      mbarrier_wait(bars.full(0, k_ring.stage), k_ring.parity);
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

}  // namespace treadle::cuda::prefill
