// Tensor cores multiply 16 rows of W by up to eight tokens in one go, so the arithmetic costs the
// same for one token as for eight and all that matters is streaming W.
//
// The order of k within a product is free as long as W and x agree on it. Each lane therefore loads
// 16 contiguous bytes of its row, k = 8q .. 8q + 7 for the q-th lane of a quad, and takes them as
// the fragments of two products of depth 16.
//
// The warps of a block share its rows and take turns along k; their sums are added in shared memory
// in a fixed order.
//
// A block asks for its first steps of W before it waits for the kernels ahead of it. Only then may
// it look at x, which goes through shared memory beside W, and at y, to which it may have to add.
#include <type_traits>

#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "linear/skinny.h"

namespace treadle::cuda {
namespace {

constexpr int kRows = 16;  // of one tile

// Steps of W and x in shared memory: as many as fit when a multiprocessor holds all of its blocks.
// Fewer, and the next layer's blocks would load beside these and slow them down.
constexpr int kDeepOne = 12;  // two blocks of eight warps, one token
constexpr int kDeep = 9;
constexpr int kShallowOne = 8;  // three blocks of eight warps
constexpr int kShallow = 6;
constexpr int kSmallOne = 6;  // four blocks of four warps
constexpr int kSmall = 5;

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
template <class T, class Out, int kWarps, int kTiles, bool kGated, int kDepth>
__global__ void __launch_bounds__(32 * kWarps, 32 / kWarps) skinny_kernel(SkinnyArgs a) {
  // A lane's copies of a step come back to the lane itself, so the ring needs no barriers.
  extern __shared__ __align__(16) uint4 ring[];  // [kDepth][kTiles][2][kWarps][32]
  grid_dependency_launch();

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
  // Behind it the steps of x: [kDepth][kWarps][m][4].
  uint4* const ring_x = ring + kDepth * kTiles * 2 * kWarps * 32 + warp * a.m * 4 + lane;
  const int stage_x = kWarps * a.m * 4;
  const bool has_x = group < a.m;
  const auto fetch_w = [&](int stage, int k) {
    const bool valid = k < k_end;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        cp_async_16(shared_address(slot(stage, tile, half)), rows[tile][half] + (valid ? k : 0),
                    valid);
      }
    }
  };
  const auto fetch_x = [&](int stage, int k) {
    if (!has_x) return;
    const bool valid = k < k_end;
    cp_async_16_l1(shared_address(ring_x + stage * stage_x), x + (valid ? k : 0), valid);
  };

  constexpr int kStep = 32 * kWarps;
  int ahead = warp * 32;
#pragma unroll
  for (int stage = 0; stage < kDepth - 1; ++stage, ahead += kStep) {
    fetch_w(stage, ahead);
    cp_async_commit();
  }
  grid_dependency_wait();  // W is constant; x and y are not
#pragma unroll
  for (int stage = 0; stage < kDepth - 1; ++stage) {
    fetch_x(stage, warp * 32 + stage * kStep);
    cp_async_commit();
  }

  // An output of this thread is the i-th, i + 32 kWarps-th, ... of its block: [tile][token][row].
  constexpr int kOutputs = (kGated ? 1 : kTiles) * 8 * kRows;
  constexpr int kEach = (kOutputs + 32 * kWarps - 1) / (32 * kWarps);
  const auto output = [&](int i) -> Out* {
    const int index = i * 32 * kWarps + threadIdx.x;
    const int token = index / kRows % 8;
    const int column = first_row + index / (8 * kRows) * a.tile_stride + index % kRows;
    if (index >= kOutputs || token >= a.m || column >= a.columns) return nullptr;
    return static_cast<Out*>(a.y) + size_t(token) * a.columns + column;
  };
  float before[kEach] = {};
  if (a.add) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (const Out* y = output(i)) before[i] = to_float(*y);
    }
  }

  float acc[kTiles][4] = {};
  int stage = 0;
  for (int k = warp * 32; k < a.k; k += kStep, ahead += kStep) {
    cp_async_wait<kDepth - 2>();
    const int next = stage == 0 ? kDepth - 1 : stage - 1;
    fetch_w(next, ahead);
    fetch_x(next, ahead);
    cp_async_commit();
    const uint4 in = has_x ? ring_x[stage * stage_x] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 low = *slot(stage, tile, 0);
      const uint4 high = *slot(stage, tile, 1);
      mma_16816<T>(acc[tile], {low.x, high.x, low.y, high.y}, in.x, in.y);
      mma_16816<T>(acc[tile], {low.z, high.z, low.w, high.w}, in.z, in.w);
    }
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
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    Out* to = output(i);
    if (to == nullptr) continue;
    const int index = i * 32 * kWarps + threadIdx.x;
    const int row = index % kRows;
    const int token = index / kRows % 8;
    float y = sum_of(index / (8 * kRows), token, row);
    if constexpr (kGated) {
      // As the two kernels of a larger batch do it: gate and up are rounded on the way.
      y = silu(to_float(from_float<T>(y))) * to_float(from_float<T>(sum_of(1, token, row)));
    }
    *to = from_float<Out>(y + before[i]);
  }
}

/// From so many rows on, two tiles per block leave enough blocks to fill the GPU twice.
bool wide(int n) { return n / (2 * kRows) >= 4 * device_info().sms; }

template <class T, class Out, int kWarps, int kTiles, bool kGated, int kDepth>
void run(SkinnyArgs a, cudaStream_t stream) {
  a.tile_stride = kGated ? a.columns : kRows;
  a.block_rows = kGated ? kRows : kTiles * kRows;
  const auto blocks = static_cast<unsigned>((a.columns + a.block_rows - 1) / a.block_rows);
  const int shared = kDepth * kWarps * (2 * kTiles * 32 + a.m * 4) * int{sizeof(uint4)};
  auto* kernel = skinny_kernel<T, Out, kWarps, kTiles, kGated, kDepth>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "skinny_linear: shared memory");
  launch("skinny_linear", kernel,
         dependent_launch(blocks, 32 * kWarps, stream, static_cast<size_t>(shared)), a);
}

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
  // Wide layers have blocks enough to fill the GPU with small ones; in narrow ones more warps share
  // a block's rows, so that as many loads are under way.
  const bool narrow = !p.silu_mul && !wide(a.n);
  const DeviceInfo& device = device_info();
  const bool two = (a.n + kRows - 1) / kRows <= 2 * device.sms && device.shared_bytes >= 160 << 10;
  const auto choose = [&](auto tag, auto gated, auto output) {
    using T = typename decltype(tag)::type;
    using Out = typename decltype(output)::type;
    constexpr bool kGated = decltype(gated)::value;
    const bool one = a.m == 1;
    if (!narrow) {
      if (one) return run<T, Out, 4, 2, kGated, kSmallOne>(a, stream);
      return run<T, Out, 4, 2, kGated, kSmall>(a, stream);
    }
    if constexpr (!kGated) {
      if (one && two) return run<T, Out, 8, 1, false, kDeepOne>(a, stream);
      if (one) return run<T, Out, 8, 1, false, kShallowOne>(a, stream);
      if (two) return run<T, Out, 8, 1, false, kDeep>(a, stream);
      run<T, Out, 8, 1, false, kShallow>(a, stream);
    }
  };
  with_half_type(act, [&](auto tag) {
    if (p.silu_mul) return choose(tag, std::true_type{}, tag);
    if (p.float_output) return choose(tag, std::false_type{}, TypeTag<float>{});
    choose(tag, std::false_type{}, tag);
  });
}

}  // namespace treadle::cuda
