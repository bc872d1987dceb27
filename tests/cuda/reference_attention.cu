#include "common/dispatch.h"
#include "common/vec.cuh"
#include "reference_attention.h"

namespace treadle::cuda::testing {
namespace {

/// A warp per (token, head); running maximum and sum, one key at a time.
template <class T>
__global__ void attention_kernel(ops::AttentionParams p) {
  const int t = blockIdx.x;
  const int h = blockIdx.y;
  const int lane = threadIdx.x;
  const int dim = p.head_dim;
  const T* q = static_cast<const T*>(p.q) + (size_t(t) * p.heads + h) * dim;
  const int s = p.batch.token_sequence[t];
  const int position = p.batch.positions[t];
  const int kv_head = h / (p.heads / p.kv_heads);
  float query[8] = {};
  float acc[8] = {};
  for (int j = 0; j < 8 && lane + 32 * j < dim; ++j) query[j] = to_float(q[lane + 32 * j]);
  float max = -INFINITY;
  float sum = 0.0F;
  const int first = p.window > 0 ? ::max(0, position - p.window + 1) : 0;
  const int keys = p.batch.context_len[s] == 0 ? 0 : position + 1;  // none in a padding sequence
  for (int key = first; key < keys; ++key) {
    const int block = p.batch.block_tables[size_t(s) * p.batch.block_table_stride + key / 64];
    const T* k = static_cast<const T*>(p.kv.base) + size_t(block) * p.kv.block_elems() +
                 size_t(p.layer) * p.kv.layer_elems() + size_t(kv_head) * p.kv.head_elems() +
                 size_t(key % 64) * dim;
    const T* v = k + size_t(p.kv_heads) * p.kv.head_elems();
    float dot = 0.0F;
    for (int j = 0; j < 8 && lane + 32 * j < dim; ++j) dot += query[j] * to_float(k[lane + 32 * j]);
    const float score = warp_sum(dot) * p.scale;
    const float larger = fmaxf(max, score);
    const float keep = expf(max - larger);
    const float weight = expf(score - larger);
    max = larger;
    sum = sum * keep + weight;
    for (int j = 0; j < 8 && lane + 32 * j < dim; ++j) {
      acc[j] = acc[j] * keep + weight * to_float(v[lane + 32 * j]);
    }
  }
  T* out = static_cast<T*>(p.out) + (size_t(t) * p.heads + h) * dim;
  if (sum == 0.0F) sum = 1.0F;  // padding
  for (int j = 0; j < 8 && lane + 32 * j < dim; ++j)
    out[lane + 32 * j] = from_float<T>(acc[j] / sum);
}

}  // namespace

void reference_attention(void* /*self*/, const ops::AttentionParams& p, ops::Stream stream) {
  // The backend's own stream is not known here: the device is drained before and after.
  check(cudaDeviceSynchronize(), "before attention");
  with_half_type(p.kv.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    attention_kernel<T>
        <<<dim3(p.batch.num_tokens, p.heads), 32, 0, static_cast<cudaStream_t>(stream.handle)>>>(p);
  });
  check_launch("reference attention");
  check(cudaDeviceSynchronize(), "after attention");
}

}  // namespace treadle::cuda::testing
