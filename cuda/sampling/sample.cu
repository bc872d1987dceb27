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

/// The token in the block that found it, -1 in the team's others.
template <bool kCluster>
__device__ __forceinline__ int draw_token(const ops::SampleRow& r, int vocab,
                                          const Part<kCluster>& part, const Scan& scan,
                                          RowShared& s, const Team<kCluster>& team) {
  const Filters filters{r.top_p, r.min_p, ops::sample_uniform(r.seed, r.stream, r.position)};
  const bool by_rank = r.top_k > 0 && r.top_k < vocab;
  const bool by_mass = r.top_p < 1.0F;
  if (!by_rank && !by_mass) return draw_from_row(part, filters, 0, s, team);
  if (!by_rank || r.top_k <= most_gathered(team)) {
    const TopFound top = gather_top(part, scan.groups, by_rank ? r.top_k : 0,
                                    double{r.top_p} * scan.weight, s, team);
    if (top.count > 0) {
      if (team.rank == 0) {
        const int count = by_rank ? min(r.top_k, top.count) : top.count;
        const int kept = kept_keys(part, filters.top_p, count, top.total, s);
        if (static_cast<int>(threadIdx.x) < team.size) {
          *team.at(&s.found_bin, threadIdx.x) = kept;
          *team.at(&s.found_u64, threadIdx.x) = kept > 0 ? s.keys[kept - 1] : 0;
        }
      }
      team.sync();
      const int kept = s.found_bin;
      // Drawing takes the square of the keys, or another pass.
      const int few = kCluster ? 256 : 1024;
      if (kept > few) return draw_from_row(part, filters, s.found_u64, s, team);
      if (kept > 0) return team.rank == 0 ? draw_from_keys(part, filters, kept, s) : -1;
    }
  }
  uint64_t least = 0;
  if (by_rank) least = last_of_head<false>(part, r.top_k, 0.0, least, s, team);
  if (by_mass) least = last_of_head<true>(part, 0, r.top_p, least, s, team);
  return draw_from_row(part, filters, least, s, team);
}

/// log(sum of exp(x - max)) of the row.
template <bool kCluster>
__device__ __forceinline__ double log_sum_of(const Part<kCluster>& part, RowShared& s,
                                             const Team<kCluster>& team) {
  uint64_t sum = 0;
  for_each_logit(part,
                 [&](float v, int) { sum += units_of(exp2_approx((v - part.max) * kLog2E)); });
  team.share(s.part_softmax, block_total(sum, s));
  team.sync();
  sum = 0;
  for (int b = 0; b < team.size; ++b) sum += s.part_softmax[b];
  return log(static_cast<double>(sum) * (1.0 / kWeightUnit));
}

/// The `count` best tokens with their log-probabilities.
template <bool kCluster>
__device__ __forceinline__ void report_top(const Part<kCluster>& part, const Scan& scan, int count,
                                           double log_sum, ops::TopLogprob* out, RowShared& s,
                                           const Team<kCluster>& team) {
  TopFound top = gather_top(part, scan.groups, count, 0.0, s, team);
  if (top.count <= 0) {
    const uint64_t least = last_of_head<false>(part, count, 0.0, 0, s, team);
    const auto place = [](float, int) { return Place::kHere; };
    const auto in = [&](float v, int i) { return part.reaches(v, i, least); };
    top.count = gather_keys<false>(part, s, team, place, in).count;
  }
  if (team.rank == 0) {
    for (int i = threadIdx.x; i < count; i += kRowThreads) {
      if (i < top.count) {
        const double logprob = double{logit_of(s.keys[i])} - part.max - log_sum;
        out[i] = {id_of(s.keys[i]), static_cast<float>(logprob)};
      } else {
        out[i] = {-1, -INFINITY};
      }
    }
  }
  team.sync();
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
  const bool wants_logprob = p.logprobs != nullptr && r.num_logprobs >= 0;
  const int top_count = p.top != nullptr ? min(r.num_logprobs, ops::kMaxTopLogprobs) : 0;
  ops::TopLogprob* top = p.top + (top_count > 0 ? size_t(index) * ops::kMaxTopLogprobs : 0);
  if (!forced) {
    const size_t room = (sizeof(RowShared) + (kCluster ? capacity * sizeof(float) : 0)) / 4;
    adjust_part(r, logits, first, first + count, reinterpret_cast<uint32_t*>(shared),
                static_cast<int>(room));
  }
  team.ready();

  Part<false> source{};
  source.x = logits + first;
  source.first = first;
  source.count = count;
  source.aligned = p.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  source.vocab = p.vocab;
  // The inverse of a tiny temperature may overflow; clamped, the largest logit still weighs 1.
  source.exponent = r.temperature > 0.0F ? fminf(kLog2E / r.temperature, FLT_MAX) : kLog2E;
  float* copy = reinterpret_cast<float*>(shared + sizeof(RowShared));
  Part<kCluster> part{};
  if constexpr (kCluster) {
    part.x = copy;
    part.first = first;
    part.count = (count + 3) / 4 * 4;
    part.vocab = p.vocab;
    part.exponent = source.exponent;
  } else {
    part = source;
  }

  const bool by_mass_alone =
      !forced && !greedy && r.top_p < 1.0F && (r.top_k <= 0 || r.top_k >= p.vocab);
  const bool reports = wants_logprob || top_count > 0;
  const Scan scan = by_mass_alone ? scan_row<true>(source, copy, greedy, part, s, team)
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

  const double log_sum = reports ? log_sum_of(part, s, team) : 0.0;
  int token = -1;
  if (!forced && !greedy) {
    token = draw_token(r, p.vocab, part, scan, s, team);
  } else if (team.rank == 0) {
    token = forced ? r.forced_token : id_of(scan.best_key);
  }
  if (token >= 0 && threadIdx.x == 0) {
    p.tokens[index] = token;
    if (wants_logprob) {
      // Another block of the team may have changed it.
      const float logit = __ldcg(logits + token);
      p.logprobs[index] = static_cast<float>(double{logit} - part.max - log_sum);
    }
  }
  if (top_count > 0) report_top(part, scan, top_count, log_sum, top, s, team);
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
  const size_t shared = sizeof(RowShared) + (kCluster ? capacity * sizeof(float) : 0);
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
  const size_t shared = sizeof(RowShared) + capacity * sizeof(float);
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
