// What a block knows about its row, and passes over the row's logits.
//
// Tokens are ranked by a 64-bit key: the logit's bits in an order that compares as integers, then
// the complement of the id. Weights are whole numbers of 2^-40, so that sums are the same in
// whatever order they are made, and a search over running sums never contradicts the total.
#pragma once

#include <cfloat>
#include <cstdint>

namespace treadle::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kCandidates = 2048;  // that are sorted in shared memory
constexpr int kBins = 2048;
constexpr int kPerThread = kCandidates / kRowThreads;
constexpr float kWeightUnit = 1099511627776.0F;  // 2^40
static_assert(kBins == kCandidates);

__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);  // -0 ranks with +0
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000U);
}
__device__ __forceinline__ uint64_t rank_key(float x, int id) {
  return (uint64_t{ordered_bits(x)} << 32) | (0xffffffffU - static_cast<uint32_t>(id));
}
__device__ __forceinline__ float logit_of(uint64_t key) {
  const auto o = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((o & 0x80000000U) != 0 ? o ^ 0x80000000U : ~o);
}
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(0xffffffffU - static_cast<uint32_t>(key));
}

struct Row {
  float* x;  // [vocab]
  int vocab;
  bool aligned;  // x may be read four at a time
  float max;
  float min;    // smallest finite logit
  float scale;  // 1 / temperature
};

__device__ __forceinline__ float weight_of(const Row& row, float x) {
  return expf((x - row.max) * row.scale);
}
/// 2^x to about 2 ulp; what exponentials of sums are made of.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint64_t units_of(float weight) {
  return __float2ull_rz(weight * kWeightUnit);
}

/// x[i .. i + 4), -inf from `end` on.
__device__ __forceinline__ float4 load_four(const Row& row, int i, int end) {
  if (row.aligned && i + 4 <= end) return *reinterpret_cast<const float4*>(row.x + i);
  float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
  if (i < end) v.x = row.x[i];
  if (i + 1 < end) v.y = row.x[i + 1];
  if (i + 2 < end) v.z = row.x[i + 2];
  if (i + 3 < end) v.w = row.x[i + 3];
  return v;
}

/// f(x[i .. i + 4), i) over [begin, end), dealt out to `count` threads of which this is `rank`; a
/// thread meets its elements by ascending i. begin is a multiple of 4.
template <class F>
__device__ __forceinline__ void for_each_four(const Row& row, int begin, int end, int rank,
                                              int count, F&& f) {
  constexpr int kUnroll = 4;
  int i = begin + 4 * rank;
  const int step = 4 * count;
  for (; i + (kUnroll - 1) * step < end; i += kUnroll * step) {
    float4 v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) v[j] = load_four(row, i + j * step, end);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) f(v[j], i + j * step);
  }
  for (; i < end; i += step) f(load_four(row, i, end), i);
}

/// f(x[i], i) in the same way; elements past the end show as -inf.
template <class F>
__device__ __forceinline__ void for_each_logit(const Row& row, int begin, int end, int rank,
                                               int count, F&& f) {
  for_each_four(row, begin, end, rank, count, [&](const float4& v, int i) {
    f(v.x, i);
    f(v.y, i + 1);
    f(v.z, i + 2);
    f(v.w, i + 3);
  });
}

/// The same over the whole row, all threads of the block.
template <class F>
__device__ __forceinline__ void for_each_logit(const Row& row, F&& f) {
  for_each_logit(row, 0, row.vocab, threadIdx.x, kRowThreads, static_cast<F&&>(f));
}

/// Shared memory of a block. The bitmap of seen tokens lies over it while logits are adjusted.
struct RowShared {
  uint64_t keys[kCandidates];
  union {
    uint64_t sums[kCandidates];
    struct {
      uint32_t count[kBins];
      uint32_t low[kBins];
      uint32_t high[kBins];
    } bins;
  };
  uint64_t warp_u64[kRowWarps];
  double warp_f64[2 * kRowWarps];
  float warp_f32[2 * kRowWarps];
  int warp_i32[kRowWarps];
  uint64_t found_u64[2];
  int found_i32[3];
  int counter;
};

__device__ __forceinline__ uint64_t warp_inclusive(uint64_t v) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffU, v, d);
    if (lane >= d) v += below;
  }
  return v;
}

/// Inclusive sum over the threads of the block.
__device__ __forceinline__ uint64_t block_inclusive(uint64_t v, RowShared& s) {
  const int warp = threadIdx.x / 32;
  v = warp_inclusive(v);
  __syncthreads();
  if (threadIdx.x % 32 == 31) s.warp_u64[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; ++w) v += s.warp_u64[w];
  return v;
}

/// Sorts a[0..n) so that the largest comes first; n is a power of two. A warp compares within 64
/// neighbours as long as the distance is at most 32, so only larger ones need the whole block.
__device__ inline void sort_descending(uint64_t* a, int n) {
  bool whole_block = true;
  for (int size = 2; size <= n; size *= 2) {
    for (int apart = size / 2; apart > 0; apart /= 2) {
      if (whole_block || apart > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      whole_block = apart > 32;
      for (int i = threadIdx.x; i < n / 2; i += kRowThreads) {
        const int low = ((i & ~(apart - 1)) << 1) | (i & (apart - 1));
        const uint64_t x = a[low];
        const uint64_t y = a[low + apart];
        if ((x < y) == ((low & size) == 0)) {
          a[low] = y;
          a[low + apart] = x;
        }
      }
    }
  }
  __syncthreads();
}

/// Zeroes s.keys[n..power of two >= n) and returns that power.
__device__ __forceinline__ int pad_keys(RowShared& s, int n) {
  int size = 2;
  while (size < n) size *= 2;
  for (int i = n + threadIdx.x; i < size; i += kRowThreads) s.keys[i] = 0;
  return size;
}

}  // namespace treadle::cuda
