// A random attention problem on the GPU, and its answer by the plainest kernel there is. Shared by
// the attention tests and benches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/check.h"
#include "common/handles.h"
#include "ops/ops.h"

namespace treadle::cuda::testing {

struct SequenceShape {
  int query_len, context_len;
};

struct ProblemShape {
  std::vector<SequenceShape> sequences;
  int num_decode = 0;
  int heads = 32, kv_heads = 8, head_dim = 128;
  int window = 0;
  int num_layers = 2, layer = 1;
  bool int8 = false;           // the pool; else it has the type of q
  bool static_scales = false;  // of an int8 pool
  bool poison = true;          // fill everything no query may see with NaN
  unsigned seed = 1;
};

/// Leaves the sequences of at most 300 keys, or one of 300, few of them, and two KV heads.
inline void shorten(ProblemShape& shape) {
  constexpr int kKeys = 300;
  constexpr size_t kSequences = 12;
  std::vector<SequenceShape> kept;
  int decode = 0;
  for (size_t i = 0; i < shape.sequences.size() && kept.size() < kSequences; ++i) {
    if (shape.sequences[i].context_len > kKeys) continue;
    kept.push_back(shape.sequences[i]);
    decode += i < static_cast<size_t>(shape.num_decode) ? 1 : 0;
  }
  if (kept.empty()) {
    kept.push_back({std::min(shape.sequences[0].query_len, kKeys), kKeys});
    decode = std::min(shape.num_decode, 1);
  }
  shape.sequences = kept;
  shape.num_decode = decode;
  const int group = shape.heads / shape.kv_heads;
  shape.kv_heads = std::min(shape.kv_heads, 2);
  shape.heads = group * shape.kv_heads;
}

template <class T>
T from_float(float x);
template <>
inline __half from_float<__half>(float x) {
  return __float2half(x);
}
template <>
inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

template <class T>
constexpr ops::DType dtype_of() {
  return sizeof(T) == 2 && std::is_same_v<T, __half> ? ops::DType::kF16 : ops::DType::kBF16;
}

__device__ inline float uniform_of(uint64_t i, uint64_t seed) {
  uint64_t x = i * 0x9E3779B97F4A7C15ULL + seed * 0xD1B54A32D192ED03ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  x ^= x >> 31;
  return static_cast<float>(x >> 40) * (1.0F / (1U << 24));
}

/// Sums of four uniforms: nearly normal, standard deviation `deviation`.
template <class T>
__global__ void fill_normal(T* to, size_t n, uint64_t seed, float deviation) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    float sum = -2.0F;
    for (int k = 0; k < 4; ++k) sum += uniform_of(4 * i + k, seed);
    to[i] = T(sum * 1.7320508F * deviation);
  }
}

/// NaN over the rows [keys, 64) of one head's K and V pages of a block, all layers.
template <class T>
__global__ void poison_rows(T* block, int pages, int head_dim, int keys) {
  const int row_begin = keys * head_dim;
  for (int page = blockIdx.x; page < pages; page += gridDim.x) {
    for (int i = row_begin + threadIdx.x; i < 64 * head_dim; i += blockDim.x) {
      block[size_t(page) * 64 * head_dim + i] = T(NAN);
    }
  }
}

/// Random int8 and scales of a little more or less than a 50th, in all blocks.
__global__ void fill_int8(ops::KvPool kv, uint64_t seed) {
  const size_t block = kv.block_bytes();
  auto* base = static_cast<char*>(kv.base);
  const size_t first = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  const size_t words = kv.block_elems() / 4;
  for (size_t i = first; i < words * kv.num_blocks; i += step) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
      word |= static_cast<uint32_t>(uniform_of(4 * i + j, seed) * 256.0F) << (8 * j);
    }
    reinterpret_cast<uint32_t*>(base + i / words * block)[i % words] = word;
  }
  const size_t count = kv.num_scales();
  for (size_t i = first; i < count * (kv.static_scales ? 1 : kv.num_blocks); i += step) {
    auto* scales =
        reinterpret_cast<ops::KvScale*>(base + kv.scales_at(int32_t(i / count), 0, 0, 0));
    const size_t of = kv.static_scales ? i / 64 : i;
    scales[i % count] = {0.01F + 0.02F * uniform_of(2 * of, seed + 1),
                         uniform_of(2 * of + 1, seed + 1) - 0.5F};
  }
}

/// NaN over the scales of the keys [keys, 64) of all pages of a block.
__global__ void poison_scales(ops::KvPool kv, int block, int keys) {
  auto* scales =
      reinterpret_cast<ops::KvScale*>(static_cast<char*>(kv.base) + kv.scales_at(block, 0, 0, 0));
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < kv.num_scales();
       i += size_t{gridDim.x} * blockDim.x) {
    if (static_cast<int>(i % 64) >= keys) scales[i] = {NAN, NAN};
  }
}

/// One element of K (part 0) or V of a key of sequence s.
template <class T>
__device__ float pool_value(const ops::AttentionParams& p, int s, int key, int part, int head,
                            int column) {
  const ops::KvPool& kv = p.kv;
  const int64_t block = p.batch.block_tables[int64_t{s} * p.batch.block_table_stride + key / 64];
  const char* base = static_cast<const char*>(kv.base) + block * int64_t(kv.block_bytes());
  const int64_t at = ((int64_t{p.layer} * 2 + part) * kv.kv_heads + head) * 64 * kv.head_dim +
                     key % 64 * kv.head_dim + column;
  if (kv.dtype != ops::DType::kI8) return static_cast<float>(reinterpret_cast<const T*>(base)[at]);
  const ops::KvScale scale = reinterpret_cast<const ops::KvScale*>(
      static_cast<const char*>(kv.base) +
      kv.scales_at(int32_t(block), p.layer, part, head))[key % 64];
  return static_cast<float>(reinterpret_cast<const int8_t*>(base)[at]) * scale.scale + scale.zero;
}

/// One thread block a (token, head): scores, softmax and sum in float. kRound rounds scores,
/// probabilities, what int8 stands for and the result to T, as a framework without a fused kernel
/// does. Scores are in shared memory or, where `far` is given, there: [heads][tokens][longest].
template <class T, bool kRound>
__global__ void attention_reference(ops::AttentionParams p, float* out, float* far) {
  extern __shared__ float near[];
  __shared__ float reduce[128];
  const size_t place = size_t{blockIdx.y} * gridDim.x + blockIdx.x;
  float* scores = far != nullptr ? far + place * p.batch.max_context_len : near;
  auto round = [](float x) { return kRound ? static_cast<float>(T(x)) : x; };
  const int token = blockIdx.x;
  const int head = blockIdx.y;
  int s = 0;
  while (p.batch.query_begin[s + 1] <= token) ++s;
  const int length = p.batch.context_len[s];
  const int position = length - (p.batch.query_begin[s + 1] - token);
  const int first = p.window > 0 ? max(0, position - p.window + 1) : 0;
  const int count = position + 1 - first;
  const int kv_head = head / (p.heads / p.kv_heads);
  const int d = p.head_dim;
  const T* q = static_cast<const T*>(p.q) + (int64_t{token} * p.heads + head) * d;
  float top = -INFINITY;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float dot = 0.0F;
    for (int j = 0; j < d; ++j) {
      dot += static_cast<float>(q[j]) * round(pool_value<T>(p, s, first + i, 0, kv_head, j));
    }
    scores[i] = round(dot * p.scale);
    top = fmaxf(top, scores[i]);
  }
  reduce[threadIdx.x] = top;
  __syncthreads();
  for (int i = 0; i < 128; ++i) top = fmaxf(top, reduce[i]);
  __syncthreads();
  float sum = 0.0F;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += expf(scores[i] - top);
  reduce[threadIdx.x] = sum;
  __syncthreads();
  sum = 0.0F;
  for (int i = 0; i < 128; ++i) sum += reduce[i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    scores[i] = round(expf(scores[i] - top) / sum);
  }
  __syncthreads();
  for (int j = threadIdx.x; j < d; j += blockDim.x) {
    float o = 0.0F;
    for (int i = 0; i < count; ++i) {
      o += scores[i] * round(pool_value<T>(p, s, first + i, 1, kv_head, j));
    }
    out[(int64_t{token} * p.heads + head) * d + j] = round(o);
  }
}

/// Owns the memory of one problem.
template <class T>
class Problem {
 public:
  explicit Problem(const ProblemShape& shape) : shape_(shape) {
    const int count = static_cast<int>(shape.sequences.size());
    std::vector<int32_t> begin(count + 1, 0);
    std::vector<int32_t> length(count);
    int blocks = 0;
    int stride = 1;
    for (int s = 0; s < count; ++s) {
      begin[s + 1] = begin[s] + shape.sequences[s].query_len;
      length[s] = shape.sequences[s].context_len;
      blocks += (length[s] + 63) / 64;
      stride = std::max(stride, (length[s] + 63) / 64);
      params_.batch.max_query_len =
          std::max(params_.batch.max_query_len, shape.sequences[s].query_len);
      params_.batch.max_context_len = std::max(params_.batch.max_context_len, length[s]);
    }
    const int tokens = begin[count];
    const int num_blocks = blocks + 3;
    std::vector<int32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(shape.seed));
    std::vector<int32_t> table(size_t(count) * stride, shape.poison ? 0x3fffffff : 0);

    ops::KvPool& kv = params_.kv;
    kv.dtype = shape.int8 ? ops::DType::kI8 : dtype_of<T>();
    kv.static_scales = shape.static_scales;
    kv.num_blocks = num_blocks;
    kv.num_layers = shape.num_layers;
    kv.kv_heads = shape.kv_heads;
    kv.head_dim = shape.head_dim;
    pool_ = make_device_memory(kv.bytes());
    kv.base = pool_.get();
    auto* base = static_cast<T*>(kv.base);
    const int pages = shape.num_layers * 2 * shape.kv_heads;
    if (shape.int8) {
      fill_int8<<<2048, 256>>>(kv, shape.seed);
    } else {
      fill_normal<<<2048, 256>>>(base, kv.block_elems() * num_blocks, shape.seed, 1.0F);
    }
    auto poison = [&](int id, int keys) {
      if (shape.static_scales) return;  // an int8 is a number, whatever it is
      if (shape.int8) {
        poison_scales<<<64, 128>>>(kv, id, keys);
      } else {
        poison_rows<<<pages, 128>>>(base + id * kv.block_elems(), pages, shape.head_dim, keys);
      }
    };
    int next = 0;
    for (int s = 0; s < count; ++s) {
      for (int b = 0; b * 64 < length[s]; ++b) {
        const int id = order[next++];
        table[size_t(s) * stride + b] = id;
        if (shape.poison && length[s] - b * 64 < 64) poison(id, length[s] - b * 64);
      }
    }
    for (; shape.poison && next < num_blocks; ++next) poison(order[next], 0);

    elems_ = size_t(tokens) * shape.heads * shape.head_dim;
    q_ = make_device_memory(elems_ * sizeof(T));
    out_ = make_device_memory(elems_ * sizeof(T));
    fill_normal<<<1024, 256>>>(static_cast<T*>(q_.get()), elems_, shape.seed + 77, 1.0F);
    auto upload = [](const std::vector<int32_t>& from) {
      DeviceMemory to = make_device_memory(from.size() * 4);
      check(cudaMemcpy(to.get(), from.data(), from.size() * 4, cudaMemcpyHostToDevice), "upload");
      return to;
    };
    begin_ = upload(begin);
    length_ = upload(length);
    table_ = upload(table);

    params_.q = q_.get();
    params_.out = out_.get();
    params_.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    params_.window = shape.window;
    params_.heads = shape.heads;
    params_.kv_heads = shape.kv_heads;
    params_.head_dim = shape.head_dim;
    params_.layer = shape.layer;
    ops::SequenceBatch& batch = params_.batch;
    batch.num_tokens = tokens;
    batch.num_sequences = count;
    batch.num_decode = shape.num_decode;
    batch.query_begin = static_cast<const int32_t*>(begin_.get());
    batch.context_len = static_cast<const int32_t*>(length_.get());
    batch.block_tables = static_cast<const int32_t*>(table_.get());
    batch.block_table_stride = stride;
    check(cudaDeviceSynchronize(), "make problem");
  }

  const ops::AttentionParams& params() const { return params_; }
  size_t elems() const { return elems_; }

  void poison_out() {
    check(cudaMemset(out_.get(), 0xff, elems_ * sizeof(T)), "poison");  // NaN in both types
  }
  std::vector<T> result() const {
    std::vector<T> host(elems_);
    check(cudaMemcpy(host.data(), out_.get(), elems_ * sizeof(T), cudaMemcpyDeviceToHost),
          "download");
    return host;
  }
  std::vector<float> reference(bool rounded) const {
    DeviceMemory out = make_device_memory(elems_ * sizeof(float));
    constexpr int kNearBytes = 160 << 10;
    const int wanted = params_.batch.max_context_len * 4 + 256;
    const int bytes = wanted <= kNearBytes ? wanted : 0;
    const dim3 grid(params_.batch.num_tokens, params_.heads);
    DeviceMemory far;
    if (bytes == 0) far = make_device_memory(size_t{grid.x} * grid.y * wanted);
    auto* kernel = rounded ? attention_reference<T, true> : attention_reference<T, false>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "reference");
    kernel<<<grid, 128, bytes>>>(params_, static_cast<float*>(out.get()),
                                 static_cast<float*>(far.get()));
    check_launch("reference");
    std::vector<float> host(elems_);
    check(cudaMemcpy(host.data(), out.get(), elems_ * sizeof(float), cudaMemcpyDeviceToHost),
          "download");
    return host;
  }

 private:
  ProblemShape shape_;
  ops::AttentionParams params_;
  size_t elems_ = 0;
  DeviceMemory pool_, q_, out_, begin_, length_, table_;
};

}  // namespace treadle::cuda::testing
