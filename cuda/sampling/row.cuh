// What a thread block knows about its part of a row, and passes over it.
//
// Tokens are ranked by a 64-bit key: the logit's bits in an order that compares as integers, then
// the complement of the id. Weights are added up as whole numbers of 2^-40, so that sums are the
// same in whatever order they are made, and a search over running sums never contradicts the total.
#pragma once

#include <cfloat>
#include <cstdint>

#include "common/ptx.cuh"

namespace treadle::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;
constexpr float kWeightUnit = 1099511627776.0F;  // 2^40
constexpr float kLog2E = 1.4426950408889634F;

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

/// A block's part of a row. With kShared it lies in shared memory, filled up with -inf to whole
/// vectors; else it is the row itself in global memory.
template <bool kShared>
struct Part {
  const float* x;  // [count]
  int first;       // id of x[0]
  int count;
  bool aligned;    // x may be read four at a time
  float exponent;  // log2(e) / temperature
  float max;       // of the whole row

  /// x[i .. i + 4), -inf from `end` on. A part that is aligned has whole vectors.
  __device__ __forceinline__ float4 four(int i, int end) const {
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (kShared || aligned) {
      if (i < end) v = *reinterpret_cast<const float4*>(x + i);
      return v;
    }
    if (i < end) v.x = x[i];
    if (i + 1 < end) v.y = x[i + 1];
    if (i + 2 < end) v.z = x[i + 2];
    if (i + 3 < end) v.w = x[i + 3];
    return v;
  }
  __device__ __forceinline__ uint64_t key(float v, int i) const { return rank_key(v, first + i); }
  /// key(v, i) >= least for a v above -inf.
  __device__ __forceinline__ bool reaches(float v, int i, uint64_t least) const {
    const float bound = least > 0 ? logit_of(least) : -INFINITY;
    return (v > bound) | ((v == bound) & (first + i <= id_of(least)));
  }
  /// exp((v - max) / temperature)
  __device__ __forceinline__ float weight(float v) const {
    return exp2_approx((v - max) * exponent);
  }
};

__device__ __forceinline__ uint64_t units_of(float weight) {
  return __float2ull_rz(weight * kWeightUnit);
}

/// Tokens [begin, end) of a part; begin is a multiple of 4.
struct Range {
  int begin;
  int end;
};

/// A warp's share of a range: neighbours, so that its sums tell where in the row a weight lies.
__device__ __forceinline__ Range warp_share(Range all, int warp) {
  const int each = ((all.end - all.begin + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
  const int begin = min(all.begin + warp * each, all.end);
  return {begin, min(begin + each, all.end)};
}

enum class Order { kForward, kBackward };

/// f(x[i .. i + 4), i) over the warp's range. Forward a thread meets its elements by ascending i;
/// a pass in the other direction than the one before finds its end in the L2 cache.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_four(const Part<kShared>& part, Range range, Order order,
                                              F&& f) {
  // Global memory is far away: all loads of a round are under way before the first is looked at.
  constexpr int kAtOnce = kShared ? 2 : 4;
  constexpr int kStep = 4 * 32 * kAtOnce;
  const int rounds = (range.end - range.begin + kStep - 1) / kStep;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int round = 0; round < rounds; ++round) {
    const int at = order == Order::kForward ? round : rounds - 1 - round;
    const int first = range.begin + at * kStep + 4 * lane;
    float4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) v[j] = part.four(first + 4 * 32 * j, range.end);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + 4 * 32 * j < range.end) f(v[j], first + 4 * 32 * j);
    }
  }
}

/// The same over the block's part, of which each warp has a share.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_four(const Part<kShared>& part, Order order, F&& f) {
  for_each_four(part, warp_share({0, part.count}, threadIdx.x / 32), order, static_cast<F&&>(f));
}

}  // namespace treadle::cuda
