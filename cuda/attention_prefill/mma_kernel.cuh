// The prefill kernel of every GPU from sm_80 on, after FlashAttention-2 (arXiv:2307.08691): four
// warps, each with kRowTiles x 16 query rows of one head; one page of 64 keys at a time, from the
// last to the first. V arrives under the scores, the next K under the softmax and the product with
// V. Pages of int8 become T on their way to shared memory.
#pragma once

#include "attention_prefill/tiles.cuh"
#include "common/int8.cuh"
#include "common/ptx.cuh"
#include "common/swizzle.cuh"

namespace treadle::cuda::prefill {

constexpr int kMmaThreads = 128;
constexpr int kPage = 64;

template <int kDim>
struct MmaLayout {
  static constexpr int kRowTiles = kDim > 128 ? 1 : 2;
  static constexpr int kRows = 4 * 16 * kRowTiles;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kKeys = kRows * kRowBytes;              // after Q
  static constexpr int kValues = kKeys + kPage * kRowBytes;    // after K
  static constexpr int kStarts = kValues + kPage * kRowBytes;  // int32 [sequences + 1]
};

/// Copies kRows rows of `stride` elements, of which `valid` exist, into a swizzled area.
template <class T, int kDim, int kRows>
__device__ __forceinline__ void copy_rows(uint32_t dst, const T* src, int64_t stride, int valid) {
  constexpr int kChunks = kDim / 8;
  if constexpr (kMmaThreads / kChunks % 8 == 0) {
    // A thread's rows are a multiple of 8 apart, so that the swizzle is the same for all.
    constexpr int kStep = kMmaThreads / kChunks;
    const int r = threadIdx.x / kChunks;
    const int c = threadIdx.x % kChunks;
    dst += r * (kDim * 2) + swizzle<kDim>(r, c) * 16;
    src += r * stride + c * 8;
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const bool exists = r + i * kStep < valid;
      cp_async_16(dst + i * kStep * kDim * 2, src + (exists ? i * kStep : 0) * stride, exists);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kRows * kChunks / kMmaThreads; ++k) {
      const int i = threadIdx.x + k * kMmaThreads;
      const int r = i / kChunks;
      const int c = i % kChunks;
      const bool exists = r < valid;
      cp_async_16(dst + r * (kDim * 2) + swizzle<kDim>(r, c) * 16,
                  src + (exists ? r : 0) * stride + c * 8, exists);
    }
  }
}

/// An int8 page as T to a swizzled area; rows from `valid` on become zeros. The loads of a thread
/// are on their way together, but nothing else is done meanwhile: the other thread block on the
/// multiprocessor computes.
template <class T, int kDim>
__device__ __forceinline__ void restore_rows(uint32_t dst, Int8Page page, int valid) {
  constexpr int kChunks = kDim / 8;  // of 8 elements in a row
  constexpr int kBatch = kDim == 256 ? 4 : kPage * kChunks / kMmaThreads;
#pragma unroll
  for (int first = 0; first < kPage * kChunks / kMmaThreads; first += kBatch) {
    uint2 bytes[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      bytes[k] = __ldg(reinterpret_cast<const uint2*>(page.elements) + threadIdx.x +
                       (first + k) * kMmaThreads);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = threadIdx.x + (first + k) * kMmaThreads;
      const int r = i / kChunks;
      const int c = i % kChunks;
      const float2 s = __ldg(reinterpret_cast<const float2*>(page.scales) + r);
      const uint4 x = restore8<T>(bytes[k], {s.x, s.y});
      store_shared(dst + r * (kDim * 2) + swizzle<kDim>(r, c) * 16,
                   r < valid ? x : make_uint4(0, 0, 0, 0));
    }
  }
}

template <class T, int kDim, bool kInt8>
__global__ void __launch_bounds__(kMmaThreads, 2)
    attention_prefill_mma_kernel(const __grid_constant__ Params p) {
  using L = MmaLayout<kDim>;
  constexpr int kTiles = L::kRowTiles;
  extern __shared__ __align__(1024) uint8_t shared[];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const uint32_t q_area = shared_address(shared);
  const uint32_t k_area = q_area + L::kKeys;
  const uint32_t v_area = q_area + L::kValues;
  auto* starts = reinterpret_cast<int32_t*>(shared + L::kStarts);

  grid_dependency_wait();
  grid_dependency_launch();
  if (warp == 0) plan_tiles<L::kRows>(p, starts, lane);
  __syncthreads();
  int sequence = 0;
  const TileInfo t = tile_info<L::kRows, kPage>(p, starts, starts[p.num_sequences],
                                                blockIdx.y * p.heads + blockIdx.x, &sequence);
  if (t.done != 0) return;
  const int32_t* table = p.block_tables + int64_t{sequence} * p.block_table_stride;
  const int kv_head = t.head / (p.heads / p.kv_heads);
  auto copy_page = [&](uint32_t area, int block, int kv, int valid) {
    const int id = __ldg(table + block);
    if constexpr (kInt8) {
      restore_rows<T, kDim>(area, int8_page<kDim>(p, id, kv, kv_head), valid);
    } else {
      const int64_t page = ((int64_t{id} * p.num_layers + p.layer) * 2 + kv) * p.kv_heads + kv_head;
      copy_rows<T, kDim, kPage>(area, static_cast<const T*>(p.kv) + page * (kPage * kDim), kDim,
                                valid);
    }
  };

  copy_rows<T, kDim, L::kRows>(
      q_area, static_cast<const T*>(p.q) + (int64_t{t.first_token} * p.heads + t.head) * kDim,
      int64_t{p.heads} * kDim, t.rows);
  int block = t.key_end - 1;
  copy_page(k_area, block, 0, t.context_len - block * kPage);
  cp_async_commit();

  float out[kTiles][kDim / 8][4];
  float max[kTiles][2];
  float sum[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
      out[m][n][0] = out[m][n][1] = out[m][n][2] = out[m][n][3] = 0;
    max[m][0] = max[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = 0.0F;
  }
  const int warp_row = warp * 16 * kTiles;
  const int matrix_row = lane & 7;
  const int matrix = lane >> 3;

  for (; block >= t.key_begin; --block) {
    cp_async_wait<0>();
    __syncthreads();  // K is there, V is free
    copy_page(v_area, block, 1, t.context_len - block * kPage);
    cp_async_commit();

    float s[kTiles][8][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0F;
    }
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const int r = warp_row + (matrix & 1) * 8 + matrix_row;  // and 16 m
        ldmatrix_x4(a[m], swizzled<kDim>(q_area + r * L::kRowBytes, r, step * 2, matrix >> 1) +
                              m * 16 * L::kRowBytes);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int key = (matrix >> 1) * 8 + matrix_row;  // and 16 n
        uint32_t b[4];
        ldmatrix_x4(b, swizzled<kDim>(k_area + key * L::kRowBytes, key, step * 2, matrix & 1) +
                           n * 16 * L::kRowBytes);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          mma_16816<T>(s[m][2 * n], a[m], b[0], b[1]);
          mma_16816<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // V is there, K is free
    if (block > t.key_begin) {
      copy_page(k_area, block - 1, 0, kPage);
      cp_async_commit();
    }

    const int first = t.first_pos + warp_row;
    const bool masked = (block + 1) * kPage > min(first, t.context_len - 1) + 1 ||
                        (p.window > 0 && block * kPage < first + 16 * kTiles - p.window);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (masked) {
          const int position = min(first + m * 16 + h * 8 + (lane >> 2), t.context_len - 1);
          const int last = position - block * kPage - (lane & 3) * 2;
          const int low = p.window > 0 ? last - p.window + 1 : -(1 << 30);
#pragma unroll
          for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              if (n * 8 + j > last || n * 8 + j < low) s[m][n][2 * h + j] = -INFINITY;
            }
          }
        }
        float top = s[m][0][2 * h];
#pragma unroll
        for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        const float now = fmaxf(max[m][h], quad_max(top));
        const float base = now == -INFINITY ? 0.0F : now * p.scale_log2;
        const float factor = exp2_approx(max[m][h] * p.scale_log2 - base);
        max[m][h] = now;
        float add = 0.0F;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& x = s[m][n][2 * h + j];
            x = exp2_approx(fmaf(x, p.scale_log2, -base));
            add += x;
          }
        }
        sum[m][h] = sum[m][h] * factor + add;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          out[m][n][2 * h] *= factor;
          out[m][n][2 * h + 1] *= factor;
        }
      }
    }

#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const float(&x)[4] = s[m][2 * step];
        const float(&y)[4] = s[m][2 * step + 1];
        a[m][0] = pack2<T>(x[0], x[1]);
        a[m][1] = pack2<T>(x[2], x[3]);
        a[m][2] = pack2<T>(y[0], y[1]);
        a[m][3] = pack2<T>(y[2], y[3]);
      }
      const int key = (matrix & 1) * 8 + matrix_row;  // and 16 step
#pragma unroll
      for (int pair = 0; pair < kDim / 16; ++pair) {
        uint32_t b[4];
        ldmatrix_x4_trans(b,
                          swizzled<kDim>(v_area + key * L::kRowBytes, key, pair * 2, matrix >> 1) +
                              step * 16 * L::kRowBytes);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          mma_16816<T>(out[m][2 * pair], a[m], b[0], b[1]);
          mma_16816<T>(out[m][2 * pair + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float l = quad_sum(sum[m][h]);
      const float inverse = l > 0.0F ? 1.0F / l : 0.0F;
      const int row = warp_row + m * 16 + h * 8 + (lane >> 2);
      if (row >= t.rows) continue;
      T* to = static_cast<T*>(p.out) + (int64_t{t.first_token + row} * p.heads + t.head) * kDim +
              (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack2<T>(out[m][n][2 * h] * inverse, out[m][n][2 * h + 1] * inverse);
      }
    }
  }
}

}  // namespace treadle::cuda::prefill
