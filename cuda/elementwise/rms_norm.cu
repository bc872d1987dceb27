// RMS norm: a block per token, the row held in registers.
#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "elementwise/elementwise.h"

namespace treadle::cuda {
namespace {

constexpr int kMaxThreads = 1024;

/// The same value in every thread. Sums in an order that depends on the block's size alone.
__device__ float block_sum(float x) {
  __shared__ float sums[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  return warp_sum(lane < (blockDim.x + 31) / 32 ? sums[lane] : 0.0F);
}

/// kVectors 16-byte vectors per thread: two at least, so that enough loads are under way.
template <class T, int kVectors>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(RmsNormParams p) {
  grid_dependency_launch();
  const int width = static_cast<int>(p.width);
  const T* x = static_cast<const T*>(p.x) + size_t(blockIdx.x) * width;
  T* out = static_cast<T*>(p.out) + size_t(blockIdx.x) * width;
  float w[kVectors][8] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = (v * blockDim.x + threadIdx.x) * 8;
    if (i < width) load8(p.weight + i, w[v]);  // constant
  }
  grid_dependency_wait();
  Vec8<T> r[kVectors];
  float sum = 0.0F;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = (v * blockDim.x + threadIdx.x) * 8;
    if (i >= width) break;
    r[v] = *reinterpret_cast<const Vec8<T>*>(x + i);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if ((v * blockDim.x + threadIdx.x) * 8 >= width) break;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += to_float(r[v].v[j]) * to_float(r[v].v[j]);
  }
  const float scale = 1.0F / sqrtf(block_sum(sum) / static_cast<float>(width) + p.eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = (v * blockDim.x + threadIdx.x) * 8;
    if (i >= width) break;
#pragma unroll
    for (int j = 0; j < 8; ++j) w[v][j] = to_float(r[v].v[j]) * scale * w[v][j];
    store8(out + i, w[v]);
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, ops::DType act, cudaStream_t stream) {
  if (p.rows <= 0) return;
  check_vector_width("hidden size", p.width);
  const int vectors = static_cast<int>(p.width / 8);
  const int per_thread = (vectors + kMaxThreads - 1) / kMaxThreads;
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run = [&](auto kernel, int each) {
      const int threads = ((vectors + each - 1) / each + 31) / 32 * 32;
      launch("rms_norm", kernel, dependent_launch(static_cast<unsigned>(p.rows), threads, stream),
             p);
    };
    if (per_thread <= 2) return run(rms_norm_kernel<T, 2>, 2);
    if (per_thread <= 4) return run(rms_norm_kernel<T, 4>, 4);
    throw_unsupported("hidden size " + std::to_string(p.width) + " is above 32768");
  });
}

}  // namespace treadle::cuda
