// From the fused projection to Q and an int8 KV pool: qk-norm, RoPE, logn scaling, and K and V with
// a scale and a zero for each token and head.
#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "elementwise/elementwise.h"

namespace treadle::cuda {
namespace {

constexpr int kThreads = 128;

/// What a head's values are quantised with, as on the CPU (ops/cpu/quantise_inl.h): the least and
/// the largest become -127.5 and 127.5, and a head with a value that is not finite not-a-number.
/// `fixed` takes the range's place where it is given. By all lanes of a head; those without values
/// say so.
template <int kLanes>
__device__ __forceinline__ ops::KvScale kv_scale(const float (&x)[8], bool here,
                                                 const ops::KvScale* fixed) {
  float least = here ? x[0] : INFINITY;
  float largest = here ? x[0] : -INFINITY;
  int finite = 1;
  if (here) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      finite &= isfinite(x[j]) ? 1 : 0;
      least = fminf(least, x[j]);
      largest = fmaxf(largest, x[j]);
    }
  }
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    least = fminf(least, __shfl_xor_sync(0xffffffffU, least, other, kLanes));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, other, kLanes));
    finite &= __shfl_xor_sync(0xffffffffU, finite, other, kLanes);
  }
  if (finite == 0) return {0.0F, NAN};
  if (fixed != nullptr) return *fixed;
  // Halves first: the difference of any two finite halves is finite.
  return {(0.5F * largest - 0.5F * least) / 127.5F, 0.5F * least + 0.5F * largest};
}

__device__ __forceinline__ uint32_t quantise4(const float* x, ops::KvScale s) {
  const float scale = s.scale > 0.0F ? s.scale : 1.0F;
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // The bound comes second: it takes the place of what is not a number.
    const float q = fminf(fmaxf((x[j] - s.zero) / scale, -128.0F), 127.0F);
    word |= (static_cast<uint32_t>(__float2int_rn(q)) & 0xffU) << (8 * j);
  }
  return word;
}

/// A head of head_dim elements is held by kLanes lanes, eight elements each; lanes past head_dim
/// idle. The rotated pair (i, i + rotary_dim / 2) lies rotary_dim / 16 lanes apart.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) qkv_int8_kernel(ops::QkvParams p) {
  grid_dependency_launch();
  const int lane = threadIdx.x % kLanes;
  const int head = blockIdx.y * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int all_heads = p.heads + 2 * p.kv_heads;
  const int t = blockIdx.x;
  const int dim = p.head_dim;
  const bool here = head < all_heads && lane * 8 < dim;
  const bool is_q = head < p.heads;
  const bool is_v = head >= p.heads + p.kv_heads;
  // The step's indices are older than its first kernel.
  const int position = p.batch.positions[t];
  const int32_t* table =
      p.batch.block_tables + size_t(p.batch.token_sequence[t]) * size_t(p.batch.block_table_stride);
  const int32_t block = table[position / ops::kBlockTokens];
  grid_dependency_wait();

  float x[8] = {};
  if (here) {
    load8(static_cast<const T*>(p.qkv) + (size_t(t) * all_heads + head) * dim + lane * 8, x);
  }

  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    float sum = 0.0F;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x[j] * x[j];
#pragma unroll
    for (int other = kLanes / 2; other > 0; other /= 2) {
      sum += __shfl_xor_sync(0xffffffffU, sum, other, kLanes);
    }
    const float* weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
    if (weight != nullptr && here) {
      const float scale = 1.0F / sqrtf(sum / static_cast<float>(dim) + p.norm_eps);
      float w[8];
      load8(weight + lane * 8, w);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = x[j] * scale * w[j];
    }
  }

  const int apart = p.rotary_dim / 16;
  const int partner = lane < apart ? lane + apart : lane < 2 * apart ? lane - apart : lane;
  float y[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) y[j] = __shfl_sync(0xffffffffU, x[j], partner, kLanes);
  if (here && !is_v && lane < 2 * apart) {
    const int first = (lane < apart ? lane : lane - apart) * 8;
    const float* angles = p.cos_sin + (size_t(t) * (p.rotary_dim / 2) + first) * 2;
    const float sign = lane < apart ? -1.0F : 1.0F;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 a = reinterpret_cast<const float4*>(angles)[j];
      x[2 * j] = x[2 * j] * a.x + sign * (y[2 * j] * a.y);
      x[2 * j + 1] = x[2 * j + 1] * a.z + sign * (y[2 * j + 1] * a.w);
    }
  }

  const int part = head - p.heads;  // K heads come first in a layer, then V heads, as in qkv
  const bool fixed = p.kv_static != nullptr && here && !is_q;
  const ops::KvScale scale = kv_scale<kLanes>(x, here, fixed ? p.kv_static + part : nullptr);

  if (!here) return;
  if (is_q) {
    if (p.logn_len > 0 && position >= p.logn_len) {
      const auto logn = static_cast<float>(log(static_cast<double>(position) + 1.0) /
                                           log(static_cast<double>(p.logn_len)));
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= logn;
    }
    store8(static_cast<T*>(p.q_out) + (size_t(t) * p.heads + head) * dim + lane * 8, x);
    return;
  }
  if (block < 0) return;  // padding
  const int slot = position % ops::kBlockTokens;
  const size_t at = size_t(p.layer) * p.kv.layer_elems() + size_t(part) * p.kv.head_elems() +
                    size_t(slot) * dim + lane * 8;
  char* to = static_cast<char*>(p.kv.base) + size_t(block) * p.kv.block_bytes();
  *reinterpret_cast<uint2*>(to + at) = make_uint2(quantise4(x, scale), quantise4(x + 4, scale));
  if (lane == 0) {
    auto* scales = reinterpret_cast<ops::KvScale*>(to + p.kv.scales_offset(p.layer, 0, part));
    scales[slot] = scale;
  }
}

}  // namespace

void qkv_int8(const ops::QkvParams& p, ops::DType act, cudaStream_t stream) {
  const int all_heads = p.heads + 2 * p.kv_heads;
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run = [&](auto kernel, int lanes) {
      const int heads_per_block = kThreads / lanes;
      const dim3 grid(p.batch.num_tokens, (all_heads + heads_per_block - 1) / heads_per_block);
      launch("qkv_int8", kernel, dependent_launch(grid, kThreads, stream), p);
    };
    if (p.head_dim <= 64) return run(qkv_int8_kernel<T, 8>, 8);
    if (p.head_dim <= 128) return run(qkv_int8_kernel<T, 16>, 16);
    run(qkv_int8_kernel<T, 32>, 32);
  });
}

}  // namespace treadle::cuda
