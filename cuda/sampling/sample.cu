#include <algorithm>
#include <string>

#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "ops/philox.h"
#include "sampling/adjust.cuh"
#include "sampling/draw.cuh"
#include "sampling/sample.h"

namespace treadle::cuda {
namespace {

/// Dynamic shared memory of a block. Where it does not hold a part, marks of seen tokens still want
/// more of it than the rest.
template <bool kCluster>
constexpr size_t shared_bytes(int capacity) {
  constexpr size_t kMarks = size_t{80} << 10;  // two blocks fit a multiprocessor
  return kCluster ? sizeof(RowShared) + capacity * sizeof(float) : kMarks;
}

// Ranks up to which the best tokens are listed rather than counted: more would be bounded loosely,
// and drawing from the list takes the square of them.
constexpr int kMostListed = 256;

/// From the list of the best tokens, for the first block.
template <bool kCluster>
__device__ __forceinline__ int draw_from_list(const ops::SampleRow& r, const Filters& filters,
                                              const Part<kCluster>& part, int listed,
                                              RowShared& s) {
  const int count = min(r.top_k, listed);
  return draw_from_keys(part, filters, kept_keys(part, r.top_p, count, s), s);
}

/// From the row, of which a head is kept whose tokens the scan has counted, or all of it. The token
/// in the block that found it, -1 in the team's others.
template <bool kCluster>
__device__ __forceinline__ int draw_from_head(const Filters& filters, const Wanted& wanted,
                                              const Part<kCluster>& part, const Slices& slices,
                                              Listed& list, RowShared& s,
                                              const Team<kCluster>& team) {
  Bound bound{};
  bool weighed = false;
  const bool by_mass = wanted.share < 1.0;
  if (wanted.rank > 0 || by_mass) {
    bound = bound_by_slices(part, slices, wanted, list, s, team);
    // Whether the smallest probability leaves the head alone, whatever the rounding.
    weighed = bound.least > 0 && part.weight(logit_of(bound.least)) * 0.999F >= filters.min_p;
    if (!bound.found) {
      if (wanted.rank > 0) {
        bound.least = last_of_head<false>(part, wanted.rank, 0.0, 0, s, team);
      }
      if (by_mass) {
        bound.least = last_of_head<true>(part, 0, wanted.share, bound.least, s, team);
      }
    }
  }
  return draw_from_row(part, filters, bound.least, weighed, s, team);
}

template <bool kCluster>
__device__ __forceinline__ void sample_part(const ops::SampleParams& p, int index, int capacity,
                                            unsigned char* shared, const Team<kCluster>& team) {
  RowShared& s = *reinterpret_cast<RowShared*>(shared);
  const ops::SampleRow& r = p.rows[index];
  float* logits = p.logits + size_t(index) * p.vocab;
  const int first = min(team.rank * capacity, p.vocab);
  const int count = min(capacity, p.vocab - first);

  const bool forced = r.forced_token >= 0;
  const bool greedy = r.temperature == 0.0F || r.top_k == 1;
  const bool draws = !forced && !greedy;
  const bool by_rank = draws && r.top_k > 0 && r.top_k < p.vocab;
  const bool by_mass = draws && r.top_p < 1.0F;
  const bool from_list = by_rank && r.top_k <= kMostListed;
  const bool wants_logprob = p.logprobs != nullptr && r.num_logprobs >= 0;
  const int top_count = p.top != nullptr ? min(r.num_logprobs, ops::kMaxTopLogprobs) : 0;
  const bool reports = wants_logprob || top_count > 0;
  ops::TopLogprob* top = p.top + (top_count > 0 ? size_t(index) * ops::kMaxTopLogprobs : 0);
  if (!forced) {
    adjust_part(r, logits, first, first + count, reinterpret_cast<uint32_t*>(shared),
                static_cast<int>(shared_bytes<kCluster>(capacity) / sizeof(uint32_t)));
  }
  team.ready();

  Part<false> source{};
  source.x = logits + first;
  source.first = first;
  source.count = count;
  source.aligned = p.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  // The inverse of a tiny temperature may overflow; clamped, the largest logit still weighs 1.
  source.exponent = r.temperature > 0.0F ? fminf(kLog2E / r.temperature, FLT_MAX) : kLog2E;
  float* copy = reinterpret_cast<float*>(shared + sizeof(RowShared));
  Part<kCluster> part{};
  if constexpr (kCluster) {
    part.x = copy;
    part.first = first;
    part.count = (count + 3) / 4 * 4;
    part.exponent = source.exponent;
  } else {
    part = source;
  }

  const Scan scan = !from_list && (by_rank || by_mass)
                        ? scan_row<true>(source, copy, greedy, part, s, team)
                        : scan_row<false>(source, copy, greedy, part, s, team);
  if (!isfinite(part.max) || r.forced_token >= p.vocab) {
    if (team.rank != 0) return;
    if (threadIdx.x == 0) {
      p.tokens[index] = -1;
      if (wants_logprob) p.logprobs[index] = -INFINITY;
    }
    for (int i = threadIdx.x; i < top_count; i += kRowThreads) top[i] = {-1, -INFINITY};
    return;
  }

  const Filters filters{r.top_p, r.min_p, ops::sample_uniform(r.seed, r.stream, r.position)};
  int token = -1;
  Listed list;
  if (draws && !from_list) {
    const Wanted wanted{by_rank ? r.top_k : 0, r.top_p, max(top_count, 0), reports};
    token = draw_from_head(filters, wanted, part, scan.slices, list, s, team);
  } else if (!draws && team.rank == 0) {
    token = forced ? r.forced_token : id_of(scan.best_key);
  }
  if (list.count < 0 && (from_list || reports)) {
    const int wanted = max(from_list ? r.top_k : 0, top_count);
    list = reports ? list_top<true>(part, scan.groups, wanted, s, team)
                   : list_top<false>(part, scan.groups, wanted, s, team);
  }
  if (from_list && team.rank == 0) token = draw_from_list(r, filters, part, list.count, s);
  if (token >= 0 && threadIdx.x == 0) {
    p.tokens[index] = token;
    if (wants_logprob) {
      // Another block of the team may have changed it.
      const float logit = __ldcg(logits + token);
      p.logprobs[index] = static_cast<float>(double{logit} - part.max - list.log_sum);
    }
  }
  if (team.rank > 0) return;
  for (int i = threadIdx.x; i < top_count; i += kRowThreads) {
    if (i < list.count) {
      const double logprob = double{logit_of(s.keys[i])} - part.max - list.log_sum;
      top[i] = {id_of(s.keys[i]), static_cast<float>(logprob)};
    } else {
      top[i] = {-1, -INFINITY};
    }
  }
}

/// capacity: tokens of a part, a multiple of 4 (or the whole row without clusters).
template <bool kCluster>
__global__ void __launch_bounds__(kRowThreads, 2)
    sample_kernel(ops::SampleParams p, int team_size, int capacity) {
#if __CUDA_ARCH__ >= 900
  constexpr bool kRuns = true;
#else
  constexpr bool kRuns = !kCluster;
#endif
  if constexpr (kRuns) {
    extern __shared__ __align__(16) unsigned char shared[];
    grid_dependency_launch();
    Team<kCluster> team;
    if constexpr (kCluster) team = {static_cast<int>(cluster_rank()), team_size};
    grid_dependency_wait();
    sample_part(p, blockIdx.x / team_size, capacity, shared, team);
  }
}

template <bool kCluster>
void launch_rows(const ops::SampleParams& p, int team_size, int capacity, cudaStream_t stream) {
  const size_t shared = shared_bytes<kCluster>(capacity);
  check(cudaFuncSetAttribute(sample_kernel<kCluster>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "allow more shared memory");
  if constexpr (kCluster) {
    check(cudaFuncSetAttribute(sample_kernel<kCluster>,
                               cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "prefer shared memory");
  }
  LaunchShape shape = dependent_launch(p.num_rows * team_size, kRowThreads, stream, shared);
  shape.cluster = static_cast<unsigned>(team_size);
  launch("sample", sample_kernel<kCluster>, shape, p, team_size, capacity);
}

/// Whether the code that was loaded has clusters: a GPU may have been given that of an older one.
bool has_clusters() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, sample_kernel<true>), "ask for the kernel's version");
  return std::min(attributes.ptxVersion, attributes.binaryVersion) >= 90;
}

}  // namespace

void sample(const ops::SampleParams& p, cudaStream_t stream) {
  if (p.num_rows <= 0) return;
  // A few rows are each shared by many blocks, whose shared memory holds the row. Once these would
  // no longer run all at once (not every multiprocessor has a place in a cluster), one block for
  // each row keeps more rows under way. Results are the same.
  constexpr int kSmallPart = 8192;
  int team = 1;
  while (team < kMaxTeam && p.vocab > team * kSmallPart) team *= 2;
  const int capacity = ((p.vocab + team - 1) / team + 3) / 4 * 4;
  const size_t shared = shared_bytes<true>(capacity);
  const DeviceInfo& device = device_info();
  const int places = 2 * device.sms - 2 * device.sms / 11;
  if (p.num_rows * team <= places && shared <= static_cast<size_t>(device.shared_bytes) &&
      has_clusters()) {
    launch_rows<true>(p, team, capacity, stream);
  } else {
    launch_rows<false>(p, 1, p.vocab, stream);
  }
}

}  // namespace treadle::cuda
