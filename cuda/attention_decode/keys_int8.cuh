// A warp's 16 keys of a block where the pool is int8, with a KvScale for each key's K and V: where
// they are, and how they come to shared memory.
//
// Rows lie in shared memory as they do in the pool, but for a swizzle. In what order the columns of
// a head go into the products is free, so a lane takes contiguous bytes of a row: of K for four
// lanes to a key, of V for eight.
#pragma once

#include "attention_decode/newest.cuh"
#include "attention_decode/plan.cuh"
#include "attention_decode/query_int8.cuh"
#include "attention_decode/sums_int8.cuh"
#include "common/int8.cuh"
#include "common/quantise.cuh"

namespace treadle::cuda::decode {

template <class Type, int kHeadDim, int kHeadTiles>
struct KeysInt8 {
  using T = Type;
  static constexpr int kTiles = kHeadTiles;
  static constexpr int kDim = kHeadDim;
  static constexpr int kElementBytes = 1;
  static constexpr int kBlocksPerSm = blocks_per_sm(kDim, kElementBytes);
  static constexpr int kHalf = kWarpKeys * kDim;
  static constexpr int kScales = 2 * kHalf;  // of K, then of V
  static constexpr int kScaleBytes = kWarpKeys * 8;
  static constexpr int kStageBytes = kScales + 2 * kScaleBytes;
  using Raw = NewestRaw<T, kDim>;
  static constexpr WholeTiles kWholeTiles = {16, 16};
  // A lane's contiguous bytes of a row.
  static constexpr int kBytesK = kDim % 64 == 0 ? 16 : kDim % 32 == 0 ? 8 : 4;
  static constexpr int kBytesV = kDim % 128 == 0 ? 16 : kDim == 64 ? 8 : kDim % 32 == 0 ? 4 : 2;

  /// Where a byte of K or V lies. The lanes of one access have rows that differ in bit 0 (K), or in
  /// bits 1 and 2 (V).
  static __device__ __forceinline__ int at_k(int row, int byte) {
    const int at = row * kDim + byte;
    return kDim % 128 == 0 ? at ^ ((row & 1) << 6) : at;
  }
  static __device__ __forceinline__ int at_v(int row, int byte) {
    const int at = row * kDim + byte;
    return kDim % 64 == 0 ? at ^ ((row >> 1 & 3) << 5) : at;
  }

  /// In units of 512 bytes, the size of a page's 64 KvScales: K's page, and its scales. V's are
  /// kv_heads pages further.
  struct Place {
    int page, scales;
    __device__ Place of_lane(int lane) const {
      return {__shfl_sync(0xffffffffU, page, lane), __shfl_sync(0xffffffffU, scales, lane)};
    }
  };
  static __device__ __forceinline__ Place place_of(const Params& p, int block, int kv_head) {
    const int page = p.layer * 2 * p.kv_heads + kv_head;
    return {block * p.block_stride + page * (kDim / 8),
            p.scales_begin + block * p.scales_stride + page};
  }

  /// Offsets of this lane into a stage. They stay in registers: left to itself the compiler
  /// computes them anew for every block of keys, a tenth of all instructions.
  struct Lane {
    static constexpr int kCopies = (kDim + 31) / 32;
    static constexpr int kLoadsK = kDim / 4 / kBytesK;
    static constexpr int kLoadsV = kDim / 8 / kBytesV;
    int lane;
    int row[kCopies];  // of this warp's 16, that a copy brings a part of
    int to_k[kCopies], to_v[kCopies];
    int from_k[kLoadsK];     // keys lane / 4; and 8 rows further
    int from_v[kLoadsV][2];  // keys 2c and 2c + 1; and 8 rows further
    int scale;               // of key lane / 4 in 16 keys' scales

    __device__ explicit Lane(int lane_id) : lane(lane_id) {
      constexpr int kChunks = kDim / 16;  // of 16 bytes in a row
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int chunk = i * 32 + lane;
        row[i] = keep(chunk / kChunks);
        to_k[i] = keep(at_k(chunk / kChunks, chunk % kChunks * 16));
        to_v[i] = keep(kHalf + at_v(chunk / kChunks, chunk % kChunks * 16));
      }
      const int c = lane & 3;
      const int n = lane >> 2;
#pragma unroll
      for (int i = 0; i < kLoadsK; ++i) from_k[i] = keep(at_k(n, (i * 4 + c) * kBytesK));
#pragma unroll
      for (int i = 0; i < kLoadsV; ++i) {
        from_v[i][0] = keep(kHalf + at_v(c * 2, (i * 8 + n) * kBytesV));
        from_v[i][1] = keep(kHalf + at_v(c * 2 + 1, (i * 8 + n) * kBytesV));
      }
      scale = keep(kScales + n * 8);
    }
    static __device__ __forceinline__ int keep(int x) {
      if constexpr (kTiles == 1) asm volatile("" : "+r"(x));  // two tiles leave no registers
      return x;
    }
  };

  /// Copies a stage; of this warp's rows those from `keys` on become zeros.
  static __device__ __forceinline__ void copy(const Params& p, Place place, int keys, uint32_t dst,
                                              int part, const Lane& at, uint64_t policy) {
    const auto* pool = static_cast<const uint8_t*>(p.kv);
    const int lane = at.lane;
    const uint8_t* k = pool + int64_t{place.page} * 512 + part * kHalf + lane * 16;
    const uint8_t* v = k + int64_t{p.kv_heads} * (64 * kDim);
#pragma unroll
    for (int i = 0; i < Lane::kCopies; ++i) {
      if (kDim % 32 != 0 && at.row[i] >= kWarpKeys) break;
      cp_async_16(dst + at.to_k[i], k + i * 512, at.row[i] < keys, policy);
    }
#pragma unroll
    for (int i = 0; i < Lane::kCopies; ++i) {
      if (kDim % 32 != 0 && at.row[i] >= kWarpKeys) break;
      cp_async_16(dst + at.to_v[i], v + i * 512, at.row[i] < keys, policy);
    }
    if (lane < 16) {  // two keys a lane
      const uint8_t* scales = pool + (int64_t{place.scales} + (lane < 8 ? 0 : p.kv_heads)) * 512 +
                              part * kScaleBytes + (lane & 7) * 16;
      cp_async_16(dst + kScales + lane * 16, scales, (lane & 7) * 2 < keys, policy);
    }
  }

  /// The newest key and value, which wait in shared memory: no register is free for them.
  class Newest {
   public:
    explicit __device__ Newest(uint8_t* parking)
        : parked_(shared_address(parking) + threadIdx.x * (16 * Raw::kPasses)) {}

    /// Makes them and writes them to the pool.
    __device__ __forceinline__ void make(const Params& p, const Raw& raw, const Tile& tile,
                                         const float* cos_sin, int lane) const {
      const Place place = place_of(p, raw.block, tile.kv_head);
      auto* pool = static_cast<uint8_t*>(p.kv);
      const int slot = (tile.length - 1) % 64;
      raw.make(p.making, cos_sin, lane, [&](int pass, const float(&values)[8]) {
        const bool here = Raw::here(pass, lane);
        const int part = Raw::part_of(pass, lane);
        auto* scales = reinterpret_cast<ops::KvScale*>(
            pool + (int64_t{place.scales} + (here ? part : 0) * p.kv_heads) * 512);
        const bool fixed = p.scales_stride == 0;
        const ops::KvScale scale = fixed ? scales[slot] : kv_scale<Raw::kLanes>(values, here);
        if (!here) return;
        const auto words = make_uint2(quantise4(values, scale), quantise4(values + 4, scale));
        store_shared_16(parked_ + pass * 16,
                        make_uint4(words.x, words.y, __float_as_uint(scale.scale),
                                   __float_as_uint(scale.zero)));
        if (raw.block < 0) return;
        const int eight = Raw::eight_of(lane);
        uint8_t* page = pool + int64_t{place.page} * 512 + part * p.kv_heads * (64 * kDim);
        reinterpret_cast<uint2*>(page + slot * kDim)[eight] = words;
        if (eight == 0 && !fixed) scales[slot] = scale;
      });
    }

    /// Writes them to row r of a stage.
    __device__ __forceinline__ void put(uint32_t stage, int r, int lane) const {
#pragma unroll
      for (int pass = 0; pass < Raw::kPasses; ++pass) {
        if (!Raw::here(pass, lane)) continue;
        const int part = Raw::part_of(pass, lane);
        const int eight = Raw::eight_of(lane);
        const uint4 x = load_shared_16(parked_ + pass * 16);
        const int at = part == 0 ? at_k(r, eight * 8) : kHalf + at_v(r, eight * 8);
        store_shared_8(stage + at, make_uint2(x.x, x.y));
        if (eight == 0) {
          store_shared_8(stage + kScales + part * kScaleBytes + r * 8, make_uint2(x.z, x.w));
        }
      }
    }

   private:
    uint32_t parked_;
  };

  using Query = QueryInt8<T, kDim, kTiles, kBytesK>;
  using Sums = SumsInt8<KeysInt8>;
};

}  // namespace treadle::cuda::decode
