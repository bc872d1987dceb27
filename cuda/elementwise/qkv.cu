// From the fused projection to Q and the KV pool: qk-norm, RoPE, logn scaling, paged write, as int8
// where the pool is. And the angles of RoPE (arXiv:2104.09864), once for all layers of a step.
#include <type_traits>

#include "common/dispatch.h"
#include "common/head.cuh"
#include "common/ptx.cuh"
#include "common/quantise.cuh"
#include "common/vec.cuh"
#include "elementwise/elementwise.h"

namespace treadle::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFewTokens = 48;
constexpr int kManyTokens = 512;

__global__ void __launch_bounds__(kThreads) rope_kernel(ops::RopeParams p) {
  grid_dependency_launch();
  const int half = p.rotary_dim / 2;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  grid_dependency_wait();
  if (index >= int64_t{p.num_tokens} * half) return;
  const int t = static_cast<int>(index / half);
  const int i = static_cast<int>(index % half);
  const bool stretched = p.dynamic_base > 0.0 && p.rope_len != nullptr && p.rotary_dim > 2 &&
                         p.rope_len[t] > p.original_len;
  float inv_freq = 0.0F;
  if (stretched) {
    const double stretch =
        p.dynamic_factor * p.rope_len[t] / p.original_len - (p.dynamic_factor - 1.0);
    const double d = p.rotary_dim;
    const double base = p.dynamic_base * pow(stretch, d / (d - 2.0));
    inv_freq = static_cast<float>(1.0 / pow(base, 2.0 * i / d));
  } else {
    inv_freq = p.inv_freq[i];
  }
  // The product is rounded to float because models are trained with such angles.
  const float angle = static_cast<float>(p.positions[t]) * inv_freq;
  float s = 0.0F;
  float c = 0.0F;
  sincosf(angle, &s, &c);
  reinterpret_cast<float2*>(p.cos_sin)[index] =
      make_float2(c * p.attention_factor, s * p.attention_factor);
}

/// The factor of Q at a position from logn_len on. Apart from the kernel: two logarithms of doubles
/// are more code than all the rest, and few models take this path.
__device__ __noinline__ float logn_scale(int position, int logn_len) {
  return static_cast<float>(log(static_cast<double>(position) + 1.0) /
                            log(static_cast<double>(logn_len)));
}

/// A head of head_dim elements is held by kLanes lanes, eight elements each; lanes past head_dim
/// idle. The rotated pair (i, i + rotary_dim / 2) lies rotary_dim / 16 lanes apart. Each thread
/// takes kHeads heads, whose loads wait for memory together and which share the angles.
template <class T, int kLanes, int kHeads, bool kInt8>
__global__ void __launch_bounds__(kThreads) qkv_kernel(ops::QkvParams p) {
  grid_dependency_launch();
  constexpr int kApart = kThreads / kLanes;  // between a thread's heads
  const int lane = threadIdx.x % kLanes;
  const int first_head = blockIdx.y * (kApart * kHeads) + threadIdx.x / kLanes;
  const int all_heads = p.heads + 2 * p.kv_heads;
  const int t = blockIdx.x;
  const int dim = p.head_dim;
  // The step's indices are older than its first kernel.
  const int position = p.batch.positions[t];
  const int sequence = p.batch.token_sequence[t];
  grid_dependency_wait();

  // All loads before the first use of one: their latencies are most of the time of a decode step's
  // launch.
  Vec8<T> in[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int head = min(first_head + i * kApart, all_heads - 1);
    in[i] = *reinterpret_cast<const Vec8<T>*>(static_cast<const T*>(p.qkv) +
                                              (size_t(t) * all_heads + head) * dim +
                                              min(lane * 8, dim - 8));
  }
  const HeadRotation rotation(p.cos_sin + size_t(t) * p.rotary_dim, p.rotary_dim, lane);
  const int32_t block = p.batch.block_tables[size_t(sequence) * size_t(p.batch.block_table_stride) +
                                             position / ops::kBlockTokens];
  const bool stretched = p.logn_len > 0 && position >= p.logn_len;
  const float logn = stretched ? logn_scale(position, p.logn_len) : 1.0F;

#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int head = first_head + i * kApart;
    const bool here = head < all_heads && lane * 8 < dim;
    const bool is_q = head < p.heads;
    const bool is_v = head >= p.heads + p.kv_heads;
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = here ? to_float(in[i].v[j]) : 0.0F;

    if (p.q_norm != nullptr || p.k_norm != nullptr) {
      const float* weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
      norm_head<kLanes>(x, weight, here, lane, dim, p.norm_eps);
    }
    rotation.turn<kLanes>(x, here && !is_v);

    const int part = head - p.heads;  // K heads come first in a layer, then V heads, as in qkv
    ops::KvScale scale = {};
    if constexpr (kInt8) {
      if (!p.kv.static_scales && __any_sync(0xffffffffU, here && !is_q)) {
        scale = kv_scale<kLanes>(x, here);
      }
    }
    if (!here) continue;

    if (is_q) {
      if (stretched) {
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= logn;
      }
      store8(static_cast<T*>(p.q_out) + (size_t(t) * p.heads + head) * dim + lane * 8, x);
      continue;
    }
    if (block < 0) continue;  // padding
    const int slot = position % ops::kBlockTokens;
    const size_t at = size_t(p.layer) * p.kv.layer_elems() + size_t(part) * p.kv.head_elems() +
                      size_t(slot) * dim + lane * 8;
    char* to = static_cast<char*>(p.kv.base) + size_t(block) * p.kv.block_bytes();
    if constexpr (kInt8) {
      auto* stored = reinterpret_cast<ops::KvScale*>(static_cast<char*>(p.kv.base) +
                                                     p.kv.scales_at(block, p.layer, 0, part)) +
                     slot;
      if (p.kv.static_scales) {
        scale = *stored;
      } else if (lane == 0) {
        *stored = scale;
      }
      *reinterpret_cast<uint2*>(to + at) = make_uint2(quantise4(x, scale), quantise4(x + 4, scale));
    } else {
      store8(reinterpret_cast<T*>(to) + at, x);
    }
  }
}

}  // namespace

void rope(const ops::RopeParams& p, cudaStream_t stream) {
  const int64_t angles = int64_t{p.num_tokens} * (p.rotary_dim / 2);
  if (angles <= 0) return;
  launch(
      "rope", rope_kernel,
      dependent_launch(static_cast<unsigned>((angles + kThreads - 1) / kThreads), kThreads, stream),
      p);
}

void qkv(const ops::QkvParams& p, ops::DType act, cudaStream_t stream) {
  if (p.batch.num_tokens <= 0) return;
  check_vector_width("head_dim", p.head_dim);
  if (p.head_dim > 256) throw_unsupported("head_dim " + std::to_string(p.head_dim) + " above 256");
  if (p.rotary_dim % 16 != 0 || p.rotary_dim > p.head_dim) {
    throw_unsupported("rotary_dim = " + std::to_string(p.rotary_dim) +
                      " must be a multiple of 16 and at most head_dim");
  }
  const bool int8 = p.kv.dtype == ops::DType::kI8;
  if (!int8 && p.kv.dtype != act) {
    throw_unsupported(std::string("a KV cache of type ") + ops::dtype_name(p.kv.dtype) +
                      " with activations of type " + ops::dtype_name(act));
  }
  const int all_heads = p.heads + 2 * p.kv_heads;
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run_on = [&](auto lanes, auto quantised) {
      constexpr int kLanes = decltype(lanes)::value;
      constexpr bool kInt8 = decltype(quantised)::value;
      const auto with_heads = [&](auto kernel, int heads) {
        const int heads_per_block = kThreads / kLanes * heads;
        const dim3 grid(p.batch.num_tokens, (all_heads + heads_per_block - 1) / heads_per_block);
        // Attention, with much shared memory, starts early only where the split need not change.
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared),
              "qkv: split of L1 and shared memory");
        launch("qkv", kernel, dependent_launch(grid, kThreads, stream), p);
      };
      // Few tokens need all the thread blocks that there can be. With more, as few as leave room
      // for those of the attention that waits to start.
      if (p.batch.num_tokens <= kFewTokens) return with_heads(qkv_kernel<T, kLanes, 1, kInt8>, 1);
      if (p.batch.num_tokens <= kManyTokens) return with_heads(qkv_kernel<T, kLanes, 3, kInt8>, 3);
      with_heads(qkv_kernel<T, kLanes, 6, kInt8>, 6);
    };
    const auto run = [&](auto lanes) {
      if (int8) return run_on(lanes, std::true_type{});
      run_on(lanes, std::false_type{});
    };
    switch (head_lanes(p.head_dim)) {
      case 8:
        return run(std::integral_constant<int, 8>{});
      case 16:
        return run(std::integral_constant<int, 16>{});
      default:
        return run(std::integral_constant<int, 32>{});
    }
  });
}

}  // namespace treadle::cuda
