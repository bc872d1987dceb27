// A warp's 16 keys of a block where the pool is int8, with a KvScale for each key's K and V.
//
// The products run on the integers as halves, which is exact, and the scales come in where there is
// one for each key: q . k = scale_k * (q . k8) + zero_k * sum(q), and the probability that
// multiplies v8 is p * scale_v; sum(p * zero_v) is added at the end. q of bfloat16 is brought into
// the range of halves by a power of two.
//
// Rows lie in shared memory as they do in the pool, but for a swizzle. In what order the columns of
// a head go into the products is free, so a lane takes contiguous bytes of a row: of K for four
// lanes to a key, of V for eight.
#pragma once

#include "attention_decode/finish.cuh"
#include "attention_decode/newest.cuh"
#include "attention_decode/plan.cuh"
#include "attention_decode/query_int8.cuh"
#include "common/int8.cuh"
#include "common/quantise.cuh"

namespace treadle::cuda::decode {

/// Loads kWords words; or where kBytes is 2, half a word.
template <int kBytes, int kWords>
__device__ __forceinline__ void load_shared(uint32_t (&w)[kWords], uint32_t at) {
  if constexpr (kBytes == 16) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kBytes == 8) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
                 : "=r"(w[0]), "=r"(w[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(w[0]) : "r"(at) : "memory");
  } else {
    uint16_t half;
    asm volatile("ld.shared.b16 %0, [%1];\n" : "=h"(half) : "r"(at) : "memory");
    w[0] = half;
  }
}

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

  /// Over the lanes that have other keys of the same heads.
  static __device__ __forceinline__ float keys_max(float x) {
#pragma unroll
    for (int d = 4; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, d));
    return x;
  }
  static __device__ __forceinline__ float keys_sum(float x) {
#pragma unroll
    for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffU, x, d);
    return x;
  }

  struct Sums {
    static constexpr int kRows = 2 * kTiles;  // heads of a lane
    float out[kTiles][kDim / 16][4];
    float max[kRows];    // of scores without Query::unit, until finish()
    float sum[kRows];    // of this lane's keys, until finish()
    float zeros[kRows];  // sum of p * zero_v of this lane's keys, until finish()
    // The largest exponent of scale_v up to here: `out` is in units of this power of two, so that
    // p * scale_v is a half below 2.
    int exponent;

    static __device__ __forceinline__ int row_of(int i, int lane) {
      return i / 2 * 8 + (lane & 3) * 2 + i % 2;
    }
    static __device__ __forceinline__ bool tells(int lane) { return lane < 4; }

    __device__ void clear() {
#pragma unroll
      for (auto& tile : out) {
#pragma unroll
        for (auto& part : tile) part[0] = part[1] = part[2] = part[3] = 0.0F;
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        max[i] = -INFINITY;
        sum[i] = zeros[i] = 0.0F;
      }
      exponent = 0;
    }

    /// Adds the 16 keys of a stage; keys outside [first, end) are masked.
    __device__ void add(const Query& q, uint32_t stage, const Lane& at, float scale_log2, int first,
                        int end) {
      const int n = at.lane >> 2;
      // Element i of s: key n + 8 * (i / 2), head 2c + i % 2.
      float s[kTiles][4] = {};
      {
        constexpr int kWords = kBytesK / 4;
#pragma unroll
        for (int load = 0; load < kDim / 16 / kWords; ++load) {
          uint32_t w[2][kWords];
          load_shared<kBytesK>(w[0], stage + at.from_k[load]);
          load_shared<kBytesK>(w[1], stage + at.from_k[load] + 8 * kDim);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            uint32_t a[4];
            biased4(w[0][i], a[0], a[2]);
            biased4(w[1][i], a[1], a[3]);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              const auto& b = q.b[t][load * kWords + i];
              mma_16816<__half>(s[t], a, b[0], b[1]);
            }
          }
        }
      }
      // Scale and zero of keys n and n + 8.
      uint32_t raw[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_shared<8>(raw[i], stage + at.scale + i * 64);
      float scale_v[2] = {__uint_as_float(raw[2][0]), __uint_as_float(raw[3][0])};
      float zero_v[2] = {__uint_as_float(raw[2][1]), __uint_as_float(raw[3][1])};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float scale = __uint_as_float(raw[k][0]);
        const float zero = fmaf(-kInt8Bias, scale, __uint_as_float(raw[k][1]));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          s[t][2 * k] = fmaf(s[t][2 * k], scale, zero * q.sum[t][0]);
          s[t][2 * k + 1] = fmaf(s[t][2 * k + 1], scale, zero * q.sum[t][1]);
        }
      }
      if (first > 0 || end < kWarpKeys) {
        // What no query may see can be anything, and 0 * NaN is NaN.
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (n + 8 * k >= first && n + 8 * k < end) continue;
          scale_v[k] = zero_v[k] = 0.0F;
#pragma unroll
          for (auto& tile : s) tile[2 * k] = tile[2 * k + 1] = -INFINITY;
        }
      }

      const int now = ::max(exponent, exponent_of(keys_max(fmaxf(scale_v[0], scale_v[1]))));
      const float change = power_of_two(::max(127 + exponent - now, 0));
      const float unit[2] = {scale_v[0] * power_of_two(254 - now),
                             scale_v[1] * power_of_two(254 - now)};
      exponent = now;
      uint32_t p[kTiles][2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        float factor[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int i = 2 * t + j;
          float& low = s[t][j];
          float& high = s[t][2 + j];
          const float top = fmaxf(max[i], keys_max(fmaxf(low, high)));
          const float base = top == -INFINITY ? 0.0F : top * scale_log2;
          factor[j] = exp2_approx(max[i] * scale_log2 - base);
          max[i] = top;
          low = exp2_approx(low * scale_log2 - base);
          high = exp2_approx(high * scale_log2 - base);
          sum[i] = sum[i] * factor[j] + (low + high);
          zeros[i] = fmaf(low, zero_v[0], fmaf(high, zero_v[1], zeros[i] * factor[j]));
          factor[j] *= change;
        }
        if (__any_sync(0xffffffffU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
          for (auto& part : out[t]) {
            part[0] *= factor[0];
            part[1] *= factor[1];
            part[2] *= factor[0];
            part[3] *= factor[1];
          }
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          p[t][k] = transpose_8x8(pack2<__half>(s[t][2 * k] * unit[k], s[t][2 * k + 1] * unit[k]));
        }
      }

      constexpr int kWords = (kBytesV + 3) / 4;
      constexpr int kPairs = kBytesV < 4 ? 1 : 2;  // of columns in a word
#pragma unroll
      for (int load = 0; load < kDim / 8 / kBytesV; ++load) {
        uint32_t w[4][kWords];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          load_shared<kBytesV>(w[i], stage + at.from_v[load][i & 1] + (i >> 1) * 8 * kDim);
        }
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          uint32_t low[4];
          uint32_t high[4];
          pair4(w[0][i], w[1][i], low);
          pair4(w[2][i], w[3][i], high);
#pragma unroll
          for (int k = 0; k < kPairs; ++k) {
            const uint32_t a[4] = {low[2 * k], low[2 * k + 1], high[2 * k], high[2 * k + 1]};
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              mma_16816<__half>(out[t][(load * kWords + i) * kPairs + k], a, p[t][0], p[t][1]);
            }
          }
        }
      }
    }

    /// After the last key.
    __device__ void finish(const Query& q) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        sum[i] = keys_sum(sum[i]);
        zeros[i] = keys_sum(zeros[i]);
        max[i] *= q.unit;
      }
    }

    /// This lane's share of row row_of(i), times factor, to its place in rows of floats: the
    /// columns whose bytes of V it had.
    __device__ void write(int i, float factor, float* rows, int lane) const {
      const int r = row_of(i, lane);
      const float unit = exponent == 0 ? 0.0F : power_of_two(exponent) * factor;
      const float zero = zeros[i] * factor;
      const auto& tile = out[i / 2];
#pragma unroll
      for (int t = 0; t < kDim / 8; t += 2) {
        const int column = (t / kBytesV * 8 + (lane >> 2)) * kBytesV + t % kBytesV;
        float* to = rows + r * kDim + merge_column<kDim>(r, column);
        *reinterpret_cast<float2*>(to) = make_float2(fmaf(tile[t / 2][i % 2], unit, zero),
                                                     fmaf(tile[t / 2][2 + i % 2], unit, zero));
      }
    }
  };
};

}  // namespace treadle::cuda::decode
