#include <algorithm>
#include <bit>
#include <string>

#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "ops/philox.h"
#include "sampling/adjust.cuh"
#include "sampling/draw.cuh"
#include "sampling/sample.h"

namespace treadle::cuda {
namespace {

// top-k up to this is gathered into shared memory; more groups' best would bound too loosely.
constexpr int kMostGathered = 512;

/// What one pass over the row tells.
struct Scan {
  uint64_t best_key;
  GroupBest groups;
  bool damaged;    // a NaN or +inf
  double weight;   // sum of exp((x - max) * scale), or 0 when it was not wanted
  double softmax;  // sum of exp(x - max), likewise
};

constexpr float kLog2E = 1.4426950408889634F;

/// A thread's sum of exp((x - max) * scale) while the maximum is still rising.
struct RisingSum {
  float slope;  // log2(e) * scale
  double sum = 0.0;

  __device__ void raise(float from, float to) { sum *= fast_exp2((from - to) * slope); }
  __device__ void add(const float4& v, float max) {
    sum += (fast_exp2((v.x - max) * slope) + fast_exp2((v.y - max) * slope)) +
           (fast_exp2((v.z - max) * slope) + fast_exp2((v.w - max) * slope));
  }
};

/// The block's sum, the same in every thread. `lanes`: kRowWarps values of shared memory.
__device__ double block_sum(double x, double* lanes) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffU, x, d);
  if (threadIdx.x % 32 == 0) lanes[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kRowWarps; ++w) sum += lanes[w];
  return sum;
}

template <bool kWeight, bool kSoftmax>
__device__ Scan scan_row(Row& row, RowShared& s) {
  float best[2] = {-INFINITY, -INFINITY};
  int id[2] = {0, 0};
  float least = FLT_MAX;
  bool damaged = false;
  float top = -FLT_MAX;
  RisingSum weight{fminf(row.scale * kLog2E, FLT_MAX)};
  RisingSum softmax{kLog2E};
  const auto meet = [&](float v, int i, int group) {
    damaged |= !(v <= FLT_MAX);
    if (v > best[group]) {
      best[group] = v;
      id[group] = i;
    }
    if (v > -INFINITY) least = fminf(least, v);
  };
  for_each_four(row, 0, row.vocab, threadIdx.x, kRowThreads, [&](const float4& v, int i) {
    meet(v.x, i, 0);
    meet(v.y, i + 1, 1);
    meet(v.z, i + 2, 0);
    meet(v.w, i + 3, 1);
    if constexpr (kWeight || kSoftmax) {
      const float higher = fmaxf(top, fmaxf(best[0], best[1]));
      if (higher > top) {
        if constexpr (kWeight) weight.raise(top, higher);
        if constexpr (kSoftmax) softmax.raise(top, higher);
        top = higher;
      }
      if constexpr (kWeight) weight.add(v, top);
      if constexpr (kSoftmax) softmax.add(v, top);
    }
  });

  Scan scan{};
  scan.groups = {{best[0], best[1]}};
  scan.damaged = __syncthreads_or(damaged) != 0;
  uint64_t key = max(rank_key(best[0], id[0]), rank_key(best[1], id[1]));
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    key = max(key, __shfl_xor_sync(0xffffffffU, key, d));
    least = fminf(least, __shfl_xor_sync(0xffffffffU, least, d));
  }
  if (threadIdx.x % 32 == 0) {
    s.warp_u64[threadIdx.x / 32] = key;
    s.warp_f32[threadIdx.x / 32] = least;
  }
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) {
    key = max(key, s.warp_u64[w]);
    least = fminf(least, s.warp_f32[w]);
  }
  scan.best_key = key;
  row.max = logit_of(key);
  row.min = fminf(least, row.max);
  if constexpr (kWeight) {
    weight.raise(top, row.max);
    scan.weight = block_sum(weight.sum, s.warp_f64);
  }
  if constexpr (kSoftmax) {
    softmax.raise(top, row.max);
    scan.softmax = block_sum(softmax.sum, s.warp_f64 + kRowWarps);
  }
  __syncthreads();
  return scan;
}

__device__ int draw_token(const ops::SampleRow& r, const Row& row, const Scan& scan, RowShared& s) {
  const Filters filters{r.top_p, r.min_p, ops::sample_uniform(r.seed, r.stream, r.position)};
  const bool by_rank = r.top_k > 0 && r.top_k < row.vocab;
  const bool by_mass = r.top_p < 1.0F;
  if (!by_rank && !by_mass) return draw_from_row(row, filters, 0, s);
  if (!by_rank || r.top_k <= kMostGathered) {
    const TopFound top = gather_top(row, scan.groups, by_rank ? r.top_k : kMostGathered, s);
    if (top.count > 0) {
      const int count = by_rank ? min(r.top_k, top.count) : top.count;
      const double total = by_rank ? 0.0 : scan.weight * kWeightUnit;
      const int token = draw_from_keys(row, filters, count, total, by_rank || top.all, s);
      if (token >= 0) return token;
    }
  }
  uint64_t least = 0;
  if (by_rank) least = last_of_head(row, r.top_k, 0.0, least, s);
  if (by_mass) least = last_of_head(row, 0, r.top_p, least, s);
  return draw_from_row(row, filters, least, s);
}

/// The `count` best tokens with their log-probabilities.
__device__ void report_top(const Row& row, const Scan& scan, int count, double log_sum,
                           ops::TopLogprob* out, RowShared& s) {
  TopFound top = gather_top(row, scan.groups, count, s);
  if (top.count < 0) {
    const uint64_t least = last_of_head(row, count, 0.0, 0, s);
    if (threadIdx.x == 0) s.counter = 0;
    __syncthreads();
    for_each_logit(row, [&](float v, int i) {
      if (!(v > -INFINITY) || rank_key(v, i) < least) return;
      const int at = atomicAdd(&s.counter, 1);
      if (at < kCandidates) s.keys[at] = rank_key(v, i);
    });
    __syncthreads();
    top.count = min(s.counter, kCandidates);
    sort_descending(s.keys, pad_keys(s, top.count));
  }
  for (int i = threadIdx.x; i < count; i += kRowThreads) {
    if (i < top.count) {
      const double logprob = double{logit_of(s.keys[i])} - row.max - log_sum;
      out[i] = {id_of(s.keys[i]), static_cast<float>(logprob)};
    } else {
      out[i] = {-1, -INFINITY};
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kRowThreads, 2)
    sample_kernel(ops::SampleParams p, int32_t* counts) {
  extern __shared__ __align__(16) unsigned char shared[];
  RowShared& s = *reinterpret_cast<RowShared*>(shared);
  grid_dependency_launch();
  grid_dependency_wait();
  const int index = blockIdx.x;
  const ops::SampleRow& r = p.rows[index];
  Row row{};
  row.x = p.logits + size_t(index) * p.vocab;
  row.vocab = p.vocab;
  row.aligned = p.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  // The inverse of a tiny temperature may overflow; clamped, the largest logit still weighs 1.
  row.scale = r.temperature > 0.0F ? fminf(1.0F / r.temperature, FLT_MAX) : 1.0F;

  const bool forced = r.forced_token >= 0;
  const bool greedy = r.temperature == 0.0F || r.top_k == 1;
  const bool wants_logprob = p.logprobs != nullptr && r.num_logprobs >= 0;
  const int top_count = p.top != nullptr ? min(r.num_logprobs, ops::kMaxTopLogprobs) : 0;
  ops::TopLogprob* top = p.top + (top_count > 0 ? size_t(index) * ops::kMaxTopLogprobs : 0);
  if (!forced) {
    adjust_row(r, row.x, p.vocab, counts == nullptr ? nullptr : counts + size_t(index) * p.vocab,
               reinterpret_cast<uint32_t*>(shared));
  }

  const bool by_mass_alone =
      !forced && !greedy && r.top_p < 1.0F && (r.top_k <= 0 || r.top_k >= p.vocab);
  const bool reports = wants_logprob || top_count > 0;
  const Scan scan = reports         ? scan_row<true, true>(row, s)
                    : by_mass_alone ? scan_row<true, false>(row, s)
                                    : scan_row<false, false>(row, s);
  if (scan.damaged || row.max == -INFINITY || r.forced_token >= p.vocab) {
    if (threadIdx.x == 0) {
      p.tokens[index] = -1;
      if (wants_logprob) p.logprobs[index] = -INFINITY;
    }
    for (int i = threadIdx.x; i < top_count; i += kRowThreads) top[i] = {-1, -INFINITY};
    return;
  }

  int token = forced ? r.forced_token : id_of(scan.best_key);
  if (!forced && !greedy) token = draw_token(r, row, scan, s);
  const double log_sum = reports ? log(scan.softmax) : 0.0;
  if (threadIdx.x == 0) {
    p.tokens[index] = token;
    if (wants_logprob) {
      p.logprobs[index] = static_cast<float>(double{row.x[token]} - row.max - log_sum);
    }
  }
  if (top_count > 0) report_top(row, scan, top_count, log_sum, top, s);
}

void reserve(SampleWorkspace& work, size_t bytes, cudaStream_t stream) {
  if (work.counts_bytes >= bytes) return;
  work = {};
  work.counts = make_device_memory(bytes);
  work.counts_bytes = bytes;
  check(cudaMemsetAsync(work.counts.get(), 0, bytes, stream), "clear memory");
}

}  // namespace

void sample(const ops::SampleParams& p, SampleWorkspace& work, cudaStream_t stream) {
  if (p.num_rows <= 0) return;
  int32_t* counts = nullptr;
  if (p.counts_tokens) {
    // Rounded up, so that a growing batch does not reallocate at every step.
    const size_t rows = std::bit_ceil(static_cast<size_t>(p.num_rows));
    reserve(work, rows * size_t(p.vocab) * sizeof(int32_t), stream);
    counts = static_cast<int32_t*>(work.counts.get());
  }
  const size_t bitmap = (static_cast<size_t>(p.vocab) + 31) / 32 * sizeof(uint32_t);
  const size_t shared = std::max(sizeof(RowShared), bitmap);
  if (shared > static_cast<size_t>(device_info().shared_bytes)) {
    throw_unsupported("a vocabulary of " + std::to_string(p.vocab) + " tokens");
  }
  if (shared > size_t{48} << 10) {
    check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "allow more shared memory");
  }
  launch("sample", sample_kernel, dependent_launch(p.num_rows, kRowThreads, stream, shared), p,
         counts);
}

}  // namespace treadle::cuda
