#include "ceiling.h"

#include <cstdint>
#include <vector>

#include "ops/cpu/memory.h"
#include "timing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace treadle::bench {
namespace {

constexpr int64_t kRounds = 1 << 20;
volatile float sink = 0;  // keeps results alive

#if defined(__x86_64__)
constexpr int kChains = 12;  // more than latency times throughput asks for

__attribute__((target("avx512f"))) double run_avx512() {
  __m512 acc[kChains];
  for (auto& a : acc) a = _mm512_set1_ps(1.0F);
  const __m512 x = _mm512_set1_ps(0.999F);
  for (int64_t i = 0; i < kRounds; ++i) {
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, x);
  }
  for (const auto& a : acc) sink = sink + _mm512_cvtss_f32(a);
  return 2.0 * 16 * kChains * kRounds;
}

__attribute__((target("avx2,fma"))) double run_avx2() {
  __m256 acc[kChains];
  for (auto& a : acc) a = _mm256_set1_ps(1.0F);
  const __m256 x = _mm256_set1_ps(0.999F);
  for (int64_t i = 0; i < kRounds; ++i) {
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, x);
  }
  for (const auto& a : acc) sink = sink + _mm256_cvtss_f32(a);
  return 2.0 * 8 * kChains * kRounds;
}
#endif

double run_plain() {
  typedef float F __attribute__((vector_size(16)));
  F acc[8];
  for (auto& a : acc) a = F{1, 1, 1, 1};
  const F x = {0.999F, 0.999F, 0.999F, 0.999F};
  for (int64_t i = 0; i < kRounds; ++i) {
    for (auto& a : acc) a = a * x + x;
  }
  for (const auto& a : acc) sink = sink + a[0];
  return 2.0 * 4 * 8 * kRounds;
}

double run_widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return run_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_avx2();
#endif
  return run_plain();
}

}  // namespace

double read_bandwidth(ops::cpu::ThreadPool& pool) {
  constexpr int64_t kWords = int64_t{64} << 20;
  constexpr int64_t kPieces = 256;
  ops::cpu::Memory memory;
  auto* data = static_cast<uint64_t*>(memory.allocate(kWords * 8));
  for (int64_t i = 0; i < kWords; ++i) data[i] = uint64_t(i);
  std::vector<uint64_t> sums(size_t(pool.num_threads()) * 16);
  const double best = time_of(
                          [&] {
                            pool.parallel_for(kPieces, [&](int64_t piece, int thread) {
                              const uint64_t* p = data + piece * (kWords / kPieces);
                              uint64_t sum[8] = {};
                              for (int64_t k = 0; k < kWords / kPieces; k += 8) {
                                for (int j = 0; j < 8; ++j) sum[j] += p[k + j];
                              }
                              for (const uint64_t s : sum) sums[size_t(thread) * 16] += s;
                            });
                          },
                          1.0)
                          .best;
  sink = sink + static_cast<float>(sums[0]);
  return kWords * 8 / best;
}

double multiply_add_rate(ops::cpu::ThreadPool& pool) {
  std::vector<double> operations(size_t(pool.num_threads()));
  const double best = time_of(
                          [&] {
                            pool.parallel_for(pool.num_threads(), [&](int64_t i, int) {
                              operations[size_t(i)] = run_widest();
                            });
                          },
                          0.5)
                          .best;
  double total = 0;
  for (const double o : operations) total += o;
  return total / best;
}

}  // namespace treadle::bench
