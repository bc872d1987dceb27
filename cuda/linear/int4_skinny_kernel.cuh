// The kernel of int4_skinny.h. As in skinny.cu the tensor cores multiply 16 rows of W by eight
// tokens at a time, and what matters is that W streams: 4.25 bits for each of its numbers.
//
// The warps of a block share its rows, kTiles tiles of 16, and take turns along K in steps of 64
// columns. A step is 16 bytes of each tile for a lane, which come back to the lane itself, the
// groups' words, and 64 columns of x, which serve all tiles: that is why a block has several, as
// the x of eight tokens is otherwise twice as large as W.
//
// The tensor cores see the numbers as they are: a mask makes them floats (see Raw). Zeros and
// scales come in float32 when a step's sums are added to the total; the sum of x that a zero takes
// off is one more row of products, for all tiles.
//
// The order of a sum depends on the number of warps alone, not on the tiles or the tokens.
//
// A block asks for its first steps of W before it waits for the kernels ahead of it. Only then may
// it look at x and at y.
#pragma once

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "linear/int4_dequant.cuh"

namespace treadle::cuda::int4 {

struct SkinnyArgs {
  const void* packed;  // Layout, of less than 4 GB
  const void* x;       // [m][k]
  void* y;             // [m][columns]
  const float* bias;   // [n] or null
  Layout layout;
  int group_shift;  // a column's group is column >> group_shift, or the last one
  int m;
  bool add;           // to y
  bool float_output;  // y is float
};

/// Shared memory of a warp: a ring of W, whose stages are the tiles' numbers and their groups'
/// words (two groups where they are shorter than a step), and one of x [m][64] with the 16-byte
/// chunks of a token swizzled. x is nearer, in L2, and has a stage less.
template <int kTiles, bool kFine, int kDepth>
struct SkinnyRing {
  static constexpr int kXDepth = kDepth > 2 ? kDepth - 1 : 2;
  static constexpr int kWords = kTiles * kTileBytes;  // bytes from a stage's begin
  static constexpr int kTileWords = kFine ? 2 * kGroupBytes : kGroupBytes;
  // In whole lines, as what a copy of a line writes into two of them takes twice as long.
  static constexpr int kStage = (kWords + kTiles * kTileWords + 127) / 128 * 128;
  static constexpr int kX = kDepth * kStage;  // bytes from the ring's begin
  __host__ __device__ static constexpr int x_stage(int m) { return m * kTileColumns * 2; }
  __host__ __device__ static constexpr int bytes(int m) { return kX + kXDepth * x_stage(m); }
};

/// Floats of one token's 16 rows in the exchange between warps: with 20 no bank is hit twice.
constexpr int kSumStride = 20;

constexpr int skinny_sum_bytes(int warps, int tiles, int token_tiles) {
  return warps * tiles * token_tiles * 8 * kSumStride * int{sizeof(float)};
}

/// What a masked word is to the tensor cores, apart from a factor: raw = q + kOffset. The sum over
/// x of a constant A, kOneLow and kOneHigh, is what the zero has to be multiplied by.
template <class T>
struct Raw;
template <>
struct Raw<__half> {
  // A nibble in the lowest bits of a half is q * 2^-24, a subnormal number, and in the next ones
  // 16 times that; products with it are exact.
  static constexpr float kOffset = 0.0F;
  static constexpr uint32_t kOneLow = 0x00010001U;   // for row r
  static constexpr uint32_t kOneHigh = 0x00100010U;  // for row r + 8
  static constexpr float kLowFactor = 0x1p24F;
  static constexpr float kHighFactor = 0x1p20F;

  static __device__ __forceinline__ void unpack(uint32_t q, uint32_t (&a)[4]) {
    a[0] = q & 0x000f000fU;
    a[1] = q & 0x00f000f0U;
    q >>= 8;
    a[2] = q & 0x000f000fU;
    a[3] = q & 0x00f000f0U;
  }
};
template <>
struct Raw<__nv_bfloat16> {
  // Subnormal numbers of bfloat16 are too small; in the mantissa of 128 a nibble is 128 + q.
  static constexpr float kOffset = 128.0F;
  static constexpr uint32_t kOneLow = 0x3f803f80U;
  static constexpr uint32_t kOneHigh = 0x3f803f80U;
  static constexpr float kLowFactor = 1.0F;
  static constexpr float kHighFactor = 1.0F;

  static __device__ __forceinline__ void unpack(uint32_t q, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = mask_or<0x000f000fU, 0x43004300U>(q >> (4 * i));
  }
};

/// zero + kOffset, `two_to_23` being that as a float: an operand, as two constants would take a
/// second instruction.
template <class T>
__device__ __forceinline__ float raw_zero(uint32_t word, uint32_t two_to_23) {
  return __uint_as_float(__byte_perm(word, two_to_23, 0x7650)) - (0x1p23F - Raw<T>::kOffset);
}

/// kTokenTiles: eights of tokens. kFine: groups are shorter than a step.
template <class T, int kWarps, int kTiles, int kTokenTiles, bool kFine, int kDepth, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) int4_skinny_kernel(const SkinnyArgs a) {
  using Ring = SkinnyRing<kTiles, kFine, kDepth>;
  extern __shared__ __align__(128) uint8_t shared[];
  grid_dependency_launch();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  const Layout& layout = a.layout;
  const int first_tile = static_cast<int>(blockIdx.x) * kTiles;

  const int x_stage = Ring::x_stage(a.m);
  const int ring = warp * Ring::bytes(a.m);
  const int x_ring = ring + Ring::kX;
  const uint32_t base = shared_address(shared);

  // Tiles past the end are read from the last one and never stored.
  const auto* packed = static_cast<const uint8_t*>(a.packed);
  uint32_t tile_at[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const auto tile = static_cast<uint32_t>(min(first_tile + t, layout.tiles - 1));
    tile_at[t] = tile * layout.k_tiles * kTileBytes;
  }
  const uint8_t* from_w = packed + warp * kTileBytes + lane * kLaneBytes;
  // The words of a step come in 16-byte pieces, one or two to a lane.
  constexpr int kWordLanes = kFine ? 8 : 4;  // of a tile
  constexpr int kWordCopies = (kTiles * kWordLanes + 31) / 32;
  const uint8_t* words[kWordCopies];
#pragma unroll
  for (int i = 0; i < kWordCopies; ++i) {
    const int tile = min(first_tile + (i * 32 + lane) / kWordLanes, layout.tiles - 1);
    words[i] =
        packed + layout.q_bytes() + size_t(tile) * layout.groups * kGroupBytes + lane % 4 * 16;
  }
  const int word_column = lane % kWordLanes / 4 * kGroupMultiple;
  int ahead_w = warp;
  const auto fetch_w = [&](int stage) {
    const uint32_t to = base + stage;
    const bool valid = ahead_w < layout.k_tiles;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      cp_async_16(to + t * kTileBytes + lane * kLaneBytes, from_w + tile_at[t], valid);
    }
    from_w += kWarps * kTileBytes;
    const int at = valid ? ahead_w * kTileColumns + word_column : 0;
    const int group_bytes = min(at >> a.group_shift, layout.groups - 1) * kGroupBytes;
#pragma unroll
    for (int i = 0; i < kWordCopies; ++i) {
      if (i * 32 + lane < kTiles * kWordLanes) {
        cp_async_16_l1(to + Ring::kWords + (i * 32 + lane) * 16, words[i] + group_bytes, valid);
      }
    }
    ahead_w += kWarps;
  };
  // A lane brings 16 bytes of each fourth token.
  int x_column = warp * kTileColumns + lane % 8 * 8;
  const T* from_x = static_cast<const T*>(a.x) + lane / 8 * layout.k + x_column;
  const int to_x = lane / 8 * 128 + ((lane % 8 ^ lane / 8) << 4);
  const auto fetch_x = [&](int stage) {
    const bool valid = x_column < layout.k;
#pragma unroll
    for (int i = 0; i < 2 * kTokenTiles; ++i) {
      if (i * 4 + lane / 8 < a.m) {
        cp_async_16_l1(base + stage + i * 512 + (to_x ^ (i % 2 * 64)), from_x + i * 4 * layout.k,
                       valid);
      }
    }
    x_column += kWarps * kTileColumns;
    from_x += kWarps * kTileColumns;
  };

#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) {
    fetch_w(ring + i * Ring::kStage);
    cp_async_commit();
  }
  grid_dependency_wait();  // W is constant; x and y are not
#pragma unroll
  for (int i = 0; i < Ring::kXDepth - 1; ++i) {
    fetch_x(x_ring + i * x_stage);
    cp_async_commit();
    cp_async_commit();  // in the place of a step's W, which has been asked for
  }

  // The block's outputs are numbered [tile][token][row]: 16 rows of a tile, or 8 of gates.
  constexpr int kTokens = kTokenTiles * 8;
  constexpr int kEach = (kTiles * kTokens * kTileRows + 32 * kWarps - 1) / (32 * kWarps);
  const int row_bits = layout.gated ? 3 : 4;
  struct Place {
    int tile, token, row;
    int64_t at;  // of y, or -1
  };
  const auto place = [&](int i) {
    const int index = i * 32 * kWarps + static_cast<int>(threadIdx.x);
    const int row = index & ((1 << row_bits) - 1);
    Place p{(index >> row_bits) / kTokens, (index >> row_bits) % kTokens, row, -1};
    const int column = ((first_tile + p.tile) << row_bits) + row;
    if (p.tile < kTiles && p.token < a.m && column < layout.columns()) {
      p.at = int64_t{p.token} * layout.columns() + column;
    }
    return p;
  };
  float before[kEach] = {};
  if (a.add) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t at = place(i).at;
      if (at < 0) continue;
      before[i] = a.float_output ? static_cast<const float*>(a.y)[at]
                                 : to_float(static_cast<const T*>(a.y)[at]);
    }
  }

  // Where this lane's rows of the matrices of x are: lane i names row i % 8 of matrix i / 8. Tokens
  // that there are not are copies of the last.
  int x_rows[kTokenTiles];
  int x_swizzle[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int token = min(i * 8 + lane % 8, a.m - 1);
    x_rows[i] = token * 128;
    x_swizzle[i] = ((lane / 8) ^ (token & 7)) << 4;
  }

  // Tiles whose products take turns, as each waits for the one before it of its tile.
  constexpr int kTogether = kTokenTiles > 2                  ? 1
                            : kTokenTiles == 2 || kTiles < 3 ? 2
                            : kTiles == 3                    ? 3
                                                             : 4;
  const uint32_t ones[4] = {Raw<T>::kOneLow, Raw<T>::kOneHigh, Raw<T>::kOneLow, Raw<T>::kOneHigh};
  uint32_t two_to_23;
  asm volatile("mov.b32 %0, 0x4b000000;\n" : "=r"(two_to_23));
  float acc[kTiles][kTokenTiles][4] = {};
  int current = ring;
  int free = ring + (kDepth - 1) * Ring::kStage;
  int x_current = x_ring;
  int x_free = x_ring + (Ring::kXDepth - 1) * x_stage;
  for (int k = warp; k < layout.k_tiles; k += kWarps) {
    // Of the groups after this step's x none is needed yet: one of W, and x and W of each step
    // between. With rings of two stages W is the last one.
    cp_async_wait<kDepth == 2 ? 0 : 2 * Ring::kXDepth - 3>();
    __syncwarp();  // x and the words are other lanes' copies
    fetch_x(x_free);
    cp_async_commit();
    fetch_w(free);
    cp_async_commit();
    const uint8_t* const stage = shared + current;
    uint32_t b[kTokenTiles][2][4];  // [half of the step][two products' fragments]
    float x_sums[kTokenTiles][kFine ? 2 : 1][4] = {};
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ldmatrix_x4(b[i][half], base + x_current + x_rows[i] + (x_swizzle[i] ^ (half * 64)));
      }
    }
#pragma unroll
    for (int first = 0; first < kTiles; first += kTogether) {
      uint4 w[kTogether];
#pragma unroll
      for (int t = 0; t < min(kTogether, kTiles - first); ++t) {
        w[t] =
            *reinterpret_cast<const uint4*>(stage + (first + t) * kTileBytes + lane * kLaneBytes);
      }
#pragma unroll
      for (int run = 0; run < (kFine ? 2 : 1); ++run) {  // of a group
        float sums[kTogether][kTokenTiles][4] = {};
#pragma unroll
        for (int half = kFine ? run : 0; half < (kFine ? run + 1 : 2); ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int i = 0; i < kTokenTiles && first == 0; ++i) {
              mma_16816<T>(x_sums[i][run], ones, b[i][half][2 * j], b[i][half][2 * j + 1]);
            }
#pragma unroll
            for (int t = 0; t < min(kTogether, kTiles - first); ++t) {
              uint32_t fragment[4];
              Raw<T>::unpack(half == 0 ? (j == 0 ? w[t].x : w[t].y) : (j == 0 ? w[t].z : w[t].w),
                             fragment);
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i) {
                mma_16816<T>(sums[t][i], fragment, b[i][half][2 * j], b[i][half][2 * j + 1]);
              }
            }
          }
        }
#pragma unroll
        for (int t = 0; t < min(kTogether, kTiles - first); ++t) {
          const uint2 word = *reinterpret_cast<const uint2*>(stage + Ring::kWords +
                                                             (first + t) * Ring::kTileWords +
                                                             run * kGroupBytes + group * 8);
          const float scale[2] = {scale_of(word.x), scale_of(word.y)};
          const float zero[2] = {raw_zero<T>(word.x, two_to_23), raw_zero<T>(word.y, two_to_23)};
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              acc[first + t][i][j] +=
                  scale[j / 2] * (sums[t][i][j] - zero[j / 2] * x_sums[i][run][j]);
            }
          }
        }
      }
    }
    free = current;
    current += Ring::kStage;
    if (current == ring + kDepth * Ring::kStage) current = ring;
    x_free = x_current;
    x_current += x_stage;
    if (x_current == x_ring + Ring::kXDepth * x_stage) x_current = x_ring;
  }

  // The sums of the warps take the rings' place.
  cp_async_wait<0>();
  __syncthreads();
  using Sums = float[kTiles][kTokens][kSumStride];
  auto* sums = reinterpret_cast<Sums*>(shared);  // [kWarps]
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[warp][t][i * 8 + quad * 2 + j % 2][group + j / 2 * 8] =
            acc[t][i][j] * (j < 2 ? Raw<T>::kLowFactor : Raw<T>::kHighFactor);
      }
    }
  }
  __syncthreads();
  const auto sum_of = [&](int t, int token, int row) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][t][token][row];
    return a.bias == nullptr ? sum : sum + a.bias[layout.source_row(first_tile + t, row)];
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const Place p = place(i);
    if (p.at < 0) continue;
    float y = sum_of(p.tile, p.token, p.row);
    if (layout.gated) {
      // As the two kernels of a larger batch do it: gate and up are rounded on the way.
      const float up = to_float(from_float<T>(sum_of(p.tile, p.token, p.row + 8)));
      y = silu(to_float(from_float<T>(y))) * up;
    }
    y += before[i];
    if (a.float_output) {
      static_cast<float*>(a.y)[p.at] = y;
    } else {
      static_cast<T*>(a.y)[p.at] = from_float<T>(y);
    }
  }
}

}  // namespace treadle::cuda::int4
