// Tensor cores multiply 16 rows of W by up to eight tokens in one go, so the arithmetic costs the
// same for one token as for eight and all that matters is streaming W.
//
// The order of k within a product is free as long as W and x agree on it. Each lane therefore loads
// 16 contiguous bytes of its row, k = 8q .. 8q + 7 for the q-th lane of a quad, and takes them as
// the fragments of two products of depth 16.
//
// The warps of a block share its rows and take turns along k; their sums are added in shared memory
// in a fixed order.
#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "linear/skinny.h"

namespace treadle::cuda {
namespace {

constexpr int kRows = 16;  // of one tile
constexpr int kDepth = 6;  // steps of W in shared memory: about 100 KB on the way to each SM

struct SkinnyArgs {
  const void* w;      // [n][k]
  const void* x;      // [m][k]
  void* y;            // [m][columns]
  const float* bias;  // [n] or null
  int n;
  int k;
  int m;
  int columns;      // n, or n / 2 for gated activation
  bool add;         // to y
  int tile_stride;  // rows from a block's first tile to its second
  int block_rows;   // rows from one block's first tile to the next block's
};

/// kTiles: 16-row tiles of a block. kGated: the second tile holds the up rows of the first's gates.
template <class T, class Out, int kWarps, int kTiles, bool kGated>
__global__ void __launch_bounds__(32 * kWarps, 32 / kWarps) skinny_kernel(SkinnyArgs a) {
  // A lane's copies of a step come back to the lane itself, so the ring needs no barriers.
  extern __shared__ __align__(16) uint4 ring[];  // [kDepth][kTiles][2][kWarps][32]

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  const int first_row = blockIdx.x * a.block_rows;

  // Rows past the end are read from the last one and never stored.
  const T* rows[kTiles][2];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + tile * a.tile_stride + half * 8 + group;
      rows[tile][half] = static_cast<const T*>(a.w) + size_t(min(row, a.n - 1)) * a.k + quad * 8;
    }
  }
  const T* x = static_cast<const T*>(a.x) + size_t(group) * a.k + quad * 8;
  const int k_end = a.k - quad * 8;  // of offsets from the pointers above

  const auto slot = [&](int stage, int tile, int half) {
    return ring + ((stage * kTiles + tile) * 2 + half) * kWarps * 32 + threadIdx.x;
  };
  const auto fetch = [&](int stage, int k) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool valid = k < k_end;
        cp_async_16(shared_address(slot(stage, tile, half)), rows[tile][half] + (valid ? k : 0),
                    valid);
      }
    }
    cp_async_commit();
  };
  const auto load_x = [&](int k) {
    return group < a.m && k < k_end ? *reinterpret_cast<const uint4*>(x + k)
                                    : make_uint4(0, 0, 0, 0);
  };

  constexpr int kStep = 32 * kWarps;
  int ahead = warp * 32;
#pragma unroll
  for (int stage = 0; stage < kDepth - 1; ++stage, ahead += kStep) fetch(stage, ahead);
  grid_dependency_wait();  // W is constant; x is not
  grid_dependency_launch();

  float acc[kTiles][4] = {};
  uint4 in = load_x(warp * 32);
  int stage = 0;
  for (int k = warp * 32; k < a.k; k += kStep, ahead += kStep) {
    const uint4 next = load_x(k + kStep);
    cp_async_wait<kDepth - 2>();
    fetch(stage == 0 ? kDepth - 1 : stage - 1, ahead);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 low = *slot(stage, tile, 0);
      const uint4 high = *slot(stage, tile, 1);
      mma_16816<T>(acc[tile], {low.x, high.x, low.y, high.y}, in.x, in.y);
      mma_16816<T>(acc[tile], {low.z, high.z, low.w, high.w}, in.z, in.w);
    }
    in = next;
    stage = stage == kDepth - 1 ? 0 : stage + 1;
  }

  // The sums of the warps take the ring's place.
  cp_async_wait<0>();
  __syncthreads();
  auto* sums = reinterpret_cast<float(*)[kTiles][8][kRows]>(ring);  // [kWarps]
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[warp][tile][quad * 2 + i % 2][group + i / 2 * 8] = acc[tile][i];
    }
  }
  __syncthreads();

  const auto sum_of = [&](int tile, int token, int row) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][tile][token][row];
    const int n = first_row + tile * a.tile_stride + row;
    return a.bias != nullptr && n < a.n ? sum + a.bias[n] : sum;
  };
  constexpr int kOutputs = (kGated ? 1 : kTiles) * 8 * kRows;
  for (int i = threadIdx.x; i < kOutputs; i += 32 * kWarps) {
    const int row = i % kRows;
    const int token = i / kRows % 8;
    const int tile = i / (8 * kRows);
    const int column = first_row + tile * a.tile_stride + row;
    if (token >= a.m || column >= a.columns) continue;
    float y = sum_of(tile, token, row);
    if constexpr (kGated) {
      // As the two kernels of a larger batch do it: gate and up are rounded on the way.
      y = silu(to_float(from_float<T>(y))) * to_float(from_float<T>(sum_of(1, token, row)));
    }
    Out* to = static_cast<Out*>(a.y) + size_t(token) * a.columns + column;
    *to = from_float<Out>(a.add ? y + to_float(*to) : y);
  }
}

/// From so many rows on, two tiles per block leave enough blocks to fill the GPU twice.
bool wide(int n) { return n / (2 * kRows) >= 4 * device_info().sms; }

}  // namespace

bool supports_skinny_linear(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return p.num_tokens <= kSkinnyTokens && w.in_features % 8 == 0 && w.out_features < (1 << 30) &&
         w.in_features < (1 << 30);
}

void skinny_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  SkinnyArgs a{};
  a.w = w.data;
  a.x = p.x;
  a.y = p.y;
  a.bias = w.bias;
  a.n = static_cast<int>(w.out_features);
  a.k = static_cast<int>(w.in_features);
  a.m = p.num_tokens;
  a.columns = p.silu_mul ? a.n / 2 : a.n;
  a.add = p.add;
  const auto run = [&](auto kernel, int warps, int tiles, int tile_stride, int block_rows) {
    a.tile_stride = tile_stride;
    a.block_rows = block_rows;
    const auto blocks = static_cast<unsigned>((a.columns + block_rows - 1) / block_rows);
    const size_t shared = size_t{kDepth} * tiles * 2 * warps * 32 * sizeof(uint4);
    launch("skinny_linear", kernel, dependent_launch(blocks, 32 * warps, stream, shared), a);
  };
  // Wide layers have blocks enough to fill the GPU with small ones; in narrow ones more warps share
  // a block's rows, so that as many loads are under way.
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (p.silu_mul) return run(skinny_kernel<T, T, 4, 2, true>, 4, 2, a.columns, kRows);
    if (p.float_output) {
      if (wide(a.n)) return run(skinny_kernel<T, float, 4, 2, false>, 4, 2, kRows, 2 * kRows);
      return run(skinny_kernel<T, float, 8, 1, false>, 8, 1, 0, kRows);
    }
    if (wide(a.n)) return run(skinny_kernel<T, T, 4, 2, false>, 4, 2, kRows, 2 * kRows);
    run(skinny_kernel<T, T, 8, 1, false>, 8, 1, 0, kRows);
  });
}

}  // namespace treadle::cuda
