// Embedding, gather and gated activation: streams of 16-byte vectors.
#include <algorithm>

#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "elementwise/elementwise.h"

namespace treadle::cuda {
namespace {

constexpr int kMaxThreads = 256;

int threads_for(int64_t vectors) {
  return static_cast<int>(std::clamp<int64_t>((vectors + 31) / 32 * 32, 32, kMaxThreads));
}

/// out[r] = table[rows[r]]
template <class T, class S>
__global__ void __launch_bounds__(kMaxThreads)
    take_rows(const int32_t* rows, const S* table, T* out, int width) {
  grid_dependency_launch();
  grid_dependency_wait();
  const S* from = table + size_t(max(rows[blockIdx.x], 0)) * width;
  T* to = out + size_t(blockIdx.x) * width;
  for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
    float x[8];
    load8(from + i, x);
    store8(to + i, x);
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    silu_mul_kernel(const T* gate_up, T* out, int64_t inner) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * 8;
  if (i >= inner) return;
  const T* gate = gate_up + size_t(blockIdx.x) * 2 * inner;
  float g[8];
  float u[8];
  load8(gate + i, g);
  load8(gate + inner + i, u);
#pragma unroll
  for (int j = 0; j < 8; ++j) g[j] = silu(g[j]) * u[j];
  store8(out + size_t(blockIdx.x) * inner + i, g);
}

template <class T, class S>
void launch_take_rows(const char* name, const int32_t* rows, const void* table, void* out,
                      int32_t count, int32_t width, cudaStream_t stream) {
  if (count <= 0) return;
  check_vector_width("hidden size", width);
  launch(name, take_rows<T, S>, dependent_launch(count, threads_for(width / 8), stream), rows,
         static_cast<const S*>(table), static_cast<T*>(out), width);
}

}  // namespace

void embed(const ops::EmbedParams& p, ops::DType act, cudaStream_t stream) {
  const bool tied = p.table == nullptr;
  const void* table = tied ? p.tied->data : p.table;
  const ops::DType dtype = tied ? p.tied->dtype : p.table_dtype;
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (dtype == ops::DType::kF32) {
      launch_take_rows<T, float>("embed", p.ids, table, p.out, p.num_tokens, p.hidden, stream);
      return;
    }
    with_half_type(dtype, [&](auto source) {
      using S = typename decltype(source)::type;
      launch_take_rows<T, S>("embed", p.ids, table, p.out, p.num_tokens, p.hidden, stream);
    });
  });
}

void gather(const ops::GatherParams& p, ops::DType act, cudaStream_t stream) {
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_take_rows<T, T>("gather", p.rows, p.in, p.out, p.num_rows, p.hidden, stream);
  });
}

void silu_mul(const void* gate_up, void* out, int32_t num_tokens, int64_t inner, ops::DType act,
              cudaStream_t stream) {
  if (num_tokens <= 0) return;
  check_vector_width("intermediate size", inner);
  const int threads = threads_for(inner / 8);
  const auto columns = static_cast<unsigned>((inner / 8 + threads - 1) / threads);
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch("silu_mul", silu_mul_kernel<T>,
           dependent_launch(dim3(num_tokens, columns), threads, stream),
           static_cast<const T*>(gate_up), static_cast<T*>(out), inner);
  });
}

bool has_code_for_device() {
  cudaFuncAttributes attributes{};
  const bool ok = cudaFuncGetAttributes(&attributes, silu_mul_kernel<__half>) == cudaSuccess;
  (void)cudaGetLastError();
  return ok;
}

void copy_block(const ops::CopyBlockParams& p, cudaStream_t stream) {
  if (p.src == p.dst) return;
  char* base = static_cast<char*>(p.kv.base);
  const size_t bytes = p.kv.block_bytes();
  check(cudaMemcpyAsync(base + size_t(p.dst) * bytes, base + size_t(p.src) * bytes, bytes,
                        cudaMemcpyDeviceToDevice, stream),
        "copy a KV block");
}

}  // namespace treadle::cuda
