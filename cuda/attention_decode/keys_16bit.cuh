// A warp's 16 keys of a block where the pool has the type of q: how they are copied, and the sums
// that they are added to.
#pragma once

#include "attention_decode/finish.cuh"
#include "attention_decode/making_16bit.cuh"
#include "attention_decode/newest.cuh"
#include "attention_decode/plan.cuh"
#include "common/swizzle.cuh"

namespace treadle::cuda::decode {

template <class Type, int kHeadDim>
struct Keys16Bit {
  using T = Type;
  static constexpr int kDim = kHeadDim;
  static constexpr int kElementBytes = 2;
  static constexpr int kBlocksPerSm = blocks_per_sm(kDim, kElementBytes);
  static constexpr int kHalf = kWarpKeys * kDim * 2;  // K, or V
  static constexpr int kStageBytes = 2 * kHalf;
  static constexpr WholeTiles kWholeTiles = {32, 80};

  /// The number of K's page, of 64 * kDim elements; V's is kv_heads further.
  struct Place {
    int page;
    __device__ Place of_lane(int lane) const { return {__shfl_sync(0xffffffffU, page, lane)}; }
  };
  static __device__ __forceinline__ Place place_of(const Params& p, int block, int kv_head) {
    return {(block * p.num_layers + p.layer) * 2 * p.kv_heads + kv_head};
  }

  using Lane = int;
  using Raw = NewestRaw<T, kDim>;

  /// Copies a stage; of this warp's rows those from `keys` on become zeros.
  static __device__ __forceinline__ void copy(const Params& p, Place place, int keys, uint32_t dst,
                                              int part, int lane, uint64_t policy) {
    constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
    const T* k = static_cast<const T*>(p.kv) + int64_t{place.page} * (64 * kDim) +
                 part * kWarpKeys * kDim + lane * 8;
    const T* v = k + int64_t{p.kv_heads} * (64 * kDim);
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int c = (i * 32 + lane) % kChunks;
      cp_async_16(dst + r * (kDim * 2) + swizzle<kDim>(r, c) * 16, k + i * 256, r < keys, policy);
    }
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int c = (i * 32 + lane) % kChunks;
      cp_async_16(dst + kHalf + r * (kDim * 2) + swizzle<kDim>(r, c) * 16, v + i * 256, r < keys,
                  policy);
    }
  }

  /// The newest key and value, kept in registers.
  class Newest {
   public:
    explicit __device__ Newest(uint8_t* /*parking*/) {}

    /// Makes them and writes them to the pool.
    __device__ __forceinline__ void make(const Params& p, const Raw& raw, const Tile& tile,
                                         const float* cos_sin, int lane) {
      const int64_t page = place_of(p, raw.block, tile.kv_head).page;
      const int slot = (tile.length - 1) % 64;
      raw.make(p.making, cos_sin, lane, [&](int pass, const float(&values)[8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) x_[pass].v[i] = from_float<T>(values[i]);
        if (!Raw::here(pass, lane) || raw.block < 0) return;
        T* row = static_cast<T*>(p.kv) +
                 (page + Raw::part_of(pass, lane) * p.kv_heads) * (64 * kDim) + slot * kDim;
        reinterpret_cast<Vec8<T>*>(row)[Raw::eight_of(lane)] = x_[pass];
      });
    }

    /// Writes them to row r of a stage.
    __device__ __forceinline__ void put(uint32_t stage, int r, int lane) const {
#pragma unroll
      for (int pass = 0; pass < Raw::kPasses; ++pass) {
        if (!Raw::here(pass, lane)) continue;
        const uint32_t row = stage + Raw::part_of(pass, lane) * kHalf + r * (kDim * 2);
        store_shared_16(row + swizzle<kDim>(r, Raw::eight_of(lane)) * 16,
                        reinterpret_cast<const uint4&>(x_[pass]));
      }
    }

   private:
    Vec8<T> x_[Raw::kPasses];
  };

  /// q rows of one tile as the A operand; rows past the group are zero.
  struct Query {
    uint32_t a[kDim / 16][4];
    static constexpr float unit = 1.0F;  // what q here must be multiplied by

    __device__ void load(const T* rows, int group, int lane) {
      const int r = lane >> 2;
      const T* at = rows + r * kDim + (lane & 3) * 2;
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = r + (i & 1) * 8;
          const T* p = at + (i & 1) * 8 * kDim + step * 16 + (i >> 1) * 8;
          a[step][i] = row < group ? *reinterpret_cast<const uint32_t*>(p) : 0U;
        }
      }
    }

    /// The same of rows of the projection, with norm and RoPE; cos_sin of their token.
    __device__ void make(const T* rows, const Making& making, const float* cos_sin, int group,
                         int lane) {
      load(rows, group, lane);
      make_queries_16bit<T, kDim>(a, making, cos_sin, group, lane);
    }
  };

  struct Sums {
    static constexpr int kRows = 2;  // of a lane: lane / 4 and lane / 4 + 8
    float out[kDim / 8][4];
    float max[kRows];
    float sum[kRows];  // of this lane's columns only, until finish()

    static __device__ __forceinline__ int row_of(int i, int lane) { return (lane >> 2) + 8 * i; }
    /// Whether this lane tells the maxima and sums of its rows.
    static __device__ __forceinline__ bool tells(int lane) { return (lane & 3) == 0; }

    __device__ void clear() {
#pragma unroll
      for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0.0F;
      max[0] = max[1] = -INFINITY;
      sum[0] = sum[1] = 0.0F;
    }

    /// Adds the 16 keys of a stage; keys outside [first, end) are masked.
    __device__ void add(const Query& q, uint32_t k, int lane, float scale_log2, int first,
                        int end) {
      constexpr int kRowBytes = kDim * 2;
      float s[2][4] = {};
      const int row = lane & 7;
      const int matrix = lane >> 3;
      {
        const int key = (matrix >> 1) * 8 + row;
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
          uint32_t b[4];
          ldmatrix_x4(b, k + key * kRowBytes + swizzle<kDim>(key, step * 2 + (matrix & 1)) * 16);
          mma_16816<T>(s[0], q.a[step], b[0], b[1]);
          mma_16816<T>(s[1], q.a[step], b[2], b[3]);
        }
      }
      if (first > 0 || end < kWarpKeys) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int key = (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
          if (key < first || key >= end) s[i >> 2][i & 3] = -INFINITY;
        }
      }
      float base[2];
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float top = quad_max(
            fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
        const float now = fmaxf(max[h], top);
        base[h] = now == -INFINITY ? 0.0F : now * scale_log2;
        factor[h] = exp2_approx(max[h] * scale_log2 - base[h]);
        max[h] = now;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = s[i >> 2][i & 3];
        x = exp2_approx(x * scale_log2 - base[(i >> 1) & 1]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[h] =
            sum[h] * factor[h] + (s[0][2 * h] + s[0][2 * h + 1]) + (s[1][2 * h] + s[1][2 * h + 1]);
      }
      if (__any_sync(0xffffffffU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
        for (auto& tile : out) {
          tile[0] *= factor[0];
          tile[1] *= factor[0];
          tile[2] *= factor[1];
          tile[3] *= factor[1];
        }
      }
      const uint32_t p[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]),
                             pack2<T>(s[1][0], s[1][1]), pack2<T>(s[1][2], s[1][3])};
      const int key = (matrix & 1) * 8 + row;
      const uint32_t v = k + kHalf;
#pragma unroll
      for (int pair = 0; pair < kDim / 16; ++pair) {
        uint32_t b[4];
        ldmatrix_x4_trans(b,
                          v + key * kRowBytes + swizzle<kDim>(key, pair * 2 + (matrix >> 1)) * 16);
        mma_16816<T>(out[2 * pair], p, b[0], b[1]);
        mma_16816<T>(out[2 * pair + 1], p, b[2], b[3]);
      }
    }

    /// After the last key.
    __device__ void finish(const Query& /*q*/) {
      sum[0] = quad_sum(sum[0]);
      sum[1] = quad_sum(sum[1]);
    }

    /// This lane's share of row row_of(h), times factor, to its place in rows of floats.
    __device__ void write(int h, float factor, float* rows, int lane) const {
      const int r = row_of(h, lane);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = merge_column<kDim>(r, n * 8 + (lane & 3) * 2);
        *reinterpret_cast<float2*>(rows + r * kDim + column) =
            make_float2(out[n][2 * h] * factor, out[n][2 * h + 1] * factor);
      }
    }
  };
};

}  // namespace treadle::cuda::decode
