// The kernel of int4_skinny.h. As in skinny.cu the tensor cores multiply 16 rows of W by eight
// tokens at a time, and what matters is that W streams: 4.25 bits for each of its numbers.
//
// The warps of a block share its rows, kTiles tiles of 16, and take turns along K in steps of 64
// columns. A step is 16 bytes of each tile for a lane, which come back to the lane itself, the
// groups' words, and 64 columns of x, which serve all tiles: that is why a block has several, as
// the x of eight tokens is otherwise twice as large as W.
//
// Within a step q - zero is exact, and float32 scales bring the sum of a group's part to the total.
//
// Narrow layers are cut along K as well: the blocks of a cluster share rows, and each adds up and
// stores a part of them. The order of a sum depends on the layer's shape alone.
//
// A block asks for its first steps of W before it waits for the kernels ahead of it. Only then may
// it look at x and at y.
#pragma once

#include <type_traits>

#include "common/cluster.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "linear/int4_dequant.cuh"

namespace treadle::cuda::int4 {

#if __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;
#else
constexpr bool kClusters = false;  // split is 1
#endif

struct SkinnyArgs {
  const void* packed;  // Layout
  const void* x;       // [m][k]
  void* y;             // [m][columns]
  const float* bias;   // [n] or null
  Layout layout;
  int m;
  bool add;   // to y
  int split;  // blocks of a cluster, along K
};

/// Shared memory of a block: a ring for each warp. A stage is the tiles' numbers, their groups'
/// words (two groups where they are shorter than a step) and x [m][64] with the 16-byte chunks of a
/// token swizzled.
template <int kTiles>
struct SkinnyRing {
  int x;      // bytes from a stage's begin
  int stage;  // bytes

  static constexpr int kGroups = kTiles * kTileBytes;
  __host__ __device__ explicit SkinnyRing(int m, bool fine)
      : x(kGroups + kTiles * kGroupBytes * (fine ? 2 : 1)), stage(x + m * kTileColumns * 2) {}
};

/// Floats of one token's 16 rows in the exchange between warps: with 20 no bank is hit twice.
constexpr int kSumStride = 20;

constexpr int skinny_sum_bytes(int warps, int tiles, int token_tiles) {
  return warps * tiles * token_tiles * 8 * kSumStride * int{sizeof(float)};
}

/// kTokenTiles: eights of tokens.
template <class T, class Out, int kWarps, int kTiles, int kTokenTiles, bool kGated, int kDepth,
          int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) int4_skinny_kernel(const SkinnyArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  grid_dependency_launch();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  const Layout& layout = a.layout;
  const int part = static_cast<int>(blockIdx.x) % a.split;
  const int first_tile = static_cast<int>(blockIdx.x) / a.split * kTiles;
  const int k_end = layout.k_tiles * (part + 1) / a.split;
  const int k_begin = layout.k_tiles * part / a.split + warp;
  const bool fine = layout.group_size < kTileColumns;

  const SkinnyRing<kTiles> ring(a.m, fine);
  const uint32_t base = shared_address(shared) + warp * kDepth * ring.stage;
  const auto* q = static_cast<const uint8_t*>(a.packed);
  const uint8_t* words = q + layout.q_bytes();

  // Tiles past the end are read from the last one and never stored.
  const size_t tile_bytes = size_t(layout.k_tiles) * kTileBytes;
  const uint8_t* tiles[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    tiles[t] = q + min(first_tile + t, layout.tiles - 1) * tile_bytes + lane * kLaneBytes;
  }
  // One copy brings the words of a step: each lane 16 bytes of some tile.
  const int word_lanes = fine ? 8 : 4;  // of a tile
  const bool has_words = lane < kTiles * word_lanes;
  const int word_tile = min(first_tile + lane / word_lanes, layout.tiles - 1);
  const uint8_t* const tile_words = words + size_t(word_tile) * layout.groups * kGroupBytes;
  const int word_half = lane % word_lanes / 4;
  const auto fetch_w = [&](int stage, int k) {
    const uint32_t to = base + stage * ring.stage;
    const bool valid = k < k_end;
    const int at = valid ? k : 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      cp_async_16(to + t * kTileBytes + lane * kLaneBytes, tiles[t] + size_t(at) * kTileBytes,
                  valid);
    }
    if (has_words) {
      const int at_group = layout.group_of(at * kTileColumns + word_half * kGroupMultiple);
      cp_async_16_l1(to + ring.kGroups + lane * 16,
                     tile_words + at_group * kGroupBytes + lane % 4 * 16, valid);
    }
  };
  const auto fetch_x = [&](int stage, int k) {
    const uint32_t to = base + stage * ring.stage + ring.x;
    const T* x = static_cast<const T*>(a.x) + k * kTileColumns;
#pragma unroll
    for (int i = 0; i < 2 * kTokenTiles; ++i) {
      const int token = (i * 32 + lane) / 8;
      const int chunk = lane % 8;
      if (token >= a.m) break;
      const bool valid = k < k_end && k * kTileColumns + chunk * 8 < layout.k;
      cp_async_16_l1(to + token * 128 + ((chunk ^ (token & 7)) << 4),
                     valid ? x + size_t(token) * layout.k + chunk * 8 : a.x, valid);
    }
  };

  int ahead = k_begin;
#pragma unroll
  for (int stage = 0; stage < kDepth - 1; ++stage, ahead += kWarps) {
    fetch_w(stage, ahead);
    cp_async_commit();
  }
  grid_dependency_wait();  // W is constant; x and y are not
#pragma unroll
  for (int stage = 0; stage < kDepth - 1; ++stage) {
    fetch_x(stage, k_begin + stage * kWarps);
    cp_async_commit();
  }

  // Outputs of a tile are numbered [token][row]. The blocks of a cluster take equal parts of them.
  constexpr int kRows = kGated ? kTileRows / 2 : kTileRows;
  constexpr int kTileOutputs = kTokenTiles * 8 * kRows;
  constexpr int kOutputs = kTiles * kTileOutputs;
  constexpr int kEach = (kOutputs + 32 * kWarps - 1) / (32 * kWarps);
  const int share = kOutputs / a.split;
  const auto index_of = [&](int i) { return part * share + i * 32 * kWarps + threadIdx.x; };
  const auto output = [&](int i) -> Out* {
    const int index = index_of(i);
    const int token = index / kRows % (kTokenTiles * 8);
    const int column = (first_tile + index / kTileOutputs) * kRows + index % kRows;
    if (index >= (part + 1) * share || token >= a.m || column >= layout.columns()) return nullptr;
    return static_cast<Out*>(a.y) + size_t(token) * layout.columns() + column;
  };
  float before[kEach] = {};
  if (a.add) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (const Out* y = output(i)) before[i] = to_float(*y);
    }
  }

  // Where this lane's rows of the matrices of x are: lane i names row i % 8 of matrix i / 8. Tokens
  // that there are not are copies of the last.
  uint32_t x_rows[kTokenTiles];
  uint32_t x_swizzle[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int token = min(i * 8 + lane % 8, a.m - 1);
    x_rows[i] = base + ring.x + token * 128;
    x_swizzle[i] = (lane / 8) ^ (token & 7);
  }

  float acc[kTiles][kTokenTiles][4] = {};
  int stage = 0;
  for (int k = k_begin; k < k_end; k += kWarps, ahead += kWarps) {
    cp_async_wait<kDepth - 2>();
    __syncwarp();  // x and the words are other lanes' copies
    const int next = stage == 0 ? kDepth - 1 : stage - 1;
    fetch_w(next, ahead);
    fetch_x(next, ahead);
    cp_async_commit();
    uint32_t b[kTokenTiles][2][4];  // [half of the step][two products' fragments]
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ldmatrix_x4(b[i][half],
                    x_rows[i] + stage * ring.stage + ((x_swizzle[i] ^ (half * 4)) << 4));
      }
    }
    const uint8_t* const from = shared + (warp * kDepth + stage) * ring.stage;
    const auto* const group_words = reinterpret_cast<const uint2*>(from + ring.kGroups);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4 w = *reinterpret_cast<const uint4*>(from + t * kTileBytes + lane * kLaneBytes);
      const uint32_t q_words[4] = {w.x, w.y, w.z, w.w};
      uint2 word = group_words[t * (fine ? 2 * kPairs : kPairs) + group];
      float sums[kTokenTiles][4] = {};
      const auto bring_to_total = [&] {
        const float low = scale_of(word.x);
        const float high = scale_of(word.y);
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[t][i][j] += (j < 2 ? low : high) * sums[i][j];
        }
      };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && fine) {
          bring_to_total();
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0F;
          }
          word = group_words[(2 * t + 1) * kPairs + group];
        }
        const Zeros<T> zeros(word);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          uint32_t fragment[4];
          zeros.unpack(q_words[half * 2 + j], fragment);
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            mma_16816<T>(sums[i], fragment, b[i][half][2 * j], b[i][half][2 * j + 1]);
          }
        }
      }
      bring_to_total();
    }
    stage = stage == kDepth - 1 ? 0 : stage + 1;
  }

  // The sums of the warps take the rings' place.
  cp_async_wait<0>();
  __syncthreads();
  constexpr int kTokens = kTokenTiles * 8;
  using Sums = float[kTiles][kTokens][kSumStride];
  auto* sums = reinterpret_cast<Sums*>(shared);  // [kWarps]
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[warp][t][i * 8 + quad * 2 + j % 2][group + j / 2 * 8] = acc[t][i][j];
      }
    }
  }
  __syncthreads();
  const bool split = kClusters && a.split > 1;
  if (split) {
    // Of this block first, in the place of warp 0, then for the cluster to read.
    for (int i = threadIdx.x; i < kTiles * kTokens * kTileRows; i += 32 * kWarps) {
      const int t = i / (kTokens * kTileRows);
      const int token = i / kTileRows % kTokens;
      float sum = 0.0F;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[w][t][token][i % kTileRows];
      sums[0][t][token][i % kTileRows] = sum;
    }
    if constexpr (kClusters) cluster_sync();
  }
  const auto sum_of = [&](int t, int token, int row) {
    float sum = 0.0F;
    if (split) {
      if constexpr (kClusters) {
        for (int of = 0; of < a.split; ++of) sum += *in_block(&sums[0][t][token][row], of);
      }
    } else {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[w][t][token][row];
    }
    const int n = layout.source_row(first_tile + t, row);
    return a.bias != nullptr && n >= 0 ? sum + a.bias[n] : sum;
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    Out* to = output(i);
    if (to == nullptr) continue;
    const int index = index_of(i);
    const int t = index / kTileOutputs;
    const int token = index / kRows % kTokens;
    const int row = index % kRows;
    float y = sum_of(t, token, row);
    if constexpr (kGated) {
      // As the two kernels of a larger batch do it: gate and up are rounded on the way.
      y = silu(to_float(from_float<T>(y))) * to_float(from_float<T>(sum_of(t, token, row + 8)));
    }
    *to = from_float<Out>(y + before[i]);
  }
  if constexpr (kClusters) {
    if (split) cluster_sync();  // a block that others still read must not end
  }
}

}  // namespace treadle::cuda::int4
