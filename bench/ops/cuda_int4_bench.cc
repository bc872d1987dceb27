// Linear layers of 4-bit weights (groups of 128) beside 16-bit ones, both as the engine computes
// them, and beside the time in which the weights can be read.
//
// Usage: cuda_int4_bench [bfloat16] [mma] [tokens, default 1 4 8 16 32 64 128 256 1024 4096]
//
// With `mma` also by the product that GPUs without wgmma take for more than 16 tokens.
//
// Times are medians of replayed graphs, each of launches that rotate over weights past the L2 cache
// and follow each other without a pause, as in a model.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "graph_timing.h"
#include "int4_weights.h"
#include "linear/int4_layout.h"
#include "linear/int4_mma.h"
#include "ops_cuda.h"

namespace treadle::cuda {
namespace {

struct Shape {
  const char* name;
  int n, k;
  bool gated, add;
};

constexpr Shape kShapes[] = {
    {"8b qkv", 6144, 4096, false, false},     {"8b o", 4096, 4096, false, true},
    {"8b gate_up", 28672, 4096, true, false}, {"8b down", 4096, 14336, false, true},
    {"7b gate_up", 22016, 4096, true, false}, {"7b down", 4096, 11008, false, true},
};
constexpr size_t kRotated = size_t{200} << 20;  // bytes of weights that take turns

std::vector<uint16_t> random_values(ops::DType act, size_t n) {
  std::vector<uint16_t> v = random_halves(n);
  if (act != ops::DType::kBF16) return v;
  for (uint16_t& x : v) {
    x = __nv_bfloat16_raw(__float2bfloat16_rn(__half2float(__half_raw{x}))).x;
  }
  return v;
}

class Weights {
 public:
  Weights(const ops::Ops& table, const Shape& s, bool four_bits) : ops_(table) {
    const size_t elements = size_t(s.n) * size_t(s.k);
    const size_t bytes = four_bits ? elements / 2 : elements * 2;
    const size_t copies = std::clamp<size_t>(kRotated / bytes + 1, 2, 32);
    const RandomInt4 numbers(four_bits ? s.n : 0, s.k);
    const std::vector<uint16_t> values = random_values(table.act_dtype, four_bits ? 0 : elements);
    for (size_t i = 0; i < copies; ++i) {
      const ops::WeightPiece piece =
          four_bits ? numbers.piece() : ops::WeightPiece{values.data(), table.act_dtype, s.n};
      weights_.push_back(table.make_linear(table.self, &piece, 1, s.k, nullptr, s.gated));
    }
  }
  ~Weights() {
    for (ops::LinearWeight& w : weights_) ops_.release_linear(ops_.self, &w);
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  /// Of one product by `product(params)`.
  template <class Product>
  double seconds(const Shape& s, const void* x, void* y, int tokens, cudaStream_t stream,
                 const Product& product) const {
    const int launches = std::max(static_cast<int>(weights_.size()), 8);
    return graph_seconds(stream, launches, [&](int i) {
      product(ops::LinearParams{.x = x,
                                .weight = &weights_[static_cast<size_t>(i) % weights_.size()],
                                .y = y,
                                .num_tokens = tokens,
                                .silu_mul = s.gated,
                                .add = s.add});
    });
  }

 private:
  const ops::Ops& ops_;
  std::vector<ops::LinearWeight> weights_;
};

void bench(const ops::Ops& table, const Shape& s, const std::vector<int>& counts, bool with_mma,
           cudaStream_t stream) {
  const size_t most = static_cast<size_t>(*std::max_element(counts.begin(), counts.end()));
  const std::vector<uint16_t> host = random_values(table.act_dtype, most * size_t(s.k));
  const DeviceMemory x = make_device_memory(host.size() * 2);
  check(cudaMemcpy(x.get(), host.data(), host.size() * 2, cudaMemcpyHostToDevice), "upload");
  const DeviceMemory y = make_device_memory(most * size_t(s.n) * 2);
  check(cudaMemset(y.get(), 0, most * size_t(s.n) * 2), "clear");
  const double bytes[] = {2.0 * s.n * s.k,
                          static_cast<double>(int4::layout_of(s.n, s.k, 128, s.gated).bytes())};
  const auto row = [&](const Weights& weights, const char* name, double floor,
                       const auto& product) {
    std::printf("%-10s %5d x %5d %-8s %6.1f", s.name, s.n, s.k, name, floor * 1e6 / kReadLimit);
    for (const int m : counts) {
      std::printf(" %8.1f", 1e6 * weights.seconds(s, x.get(), y.get(), m, stream, product));
      std::fflush(stdout);
    }
    std::printf("\n");
  };
  const auto as_chosen = [&](const ops::LinearParams& p) { table.linear(table.self, p, {stream}); };
  row({table, s, false}, ops::dtype_name(table.act_dtype), bytes[0], as_chosen);
  const Weights weights(table, s, true);
  row(weights, "int4", bytes[1], as_chosen);
  if (!with_mma) return;
  const StreamWorkspace workspace;
  row(weights, "int4 mma", bytes[1],
      [&](const ops::LinearParams& p) { int4_mma(p, table.act_dtype, workspace, stream); });
}

}  // namespace
}  // namespace treadle::cuda

int main(int argc, char** argv) {
  namespace gpu = treadle::cuda;
  namespace ops = treadle::ops;
  if (ops::cuda_device_count() == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  gpu::check(cudaSetDevice(0), "choose device");
  const gpu::StreamHandle stream = gpu::make_stream();
  int arg = 1;
  const auto take = [&](const char* word) {
    const bool there = arg < argc && std::strcmp(argv[arg], word) == 0;
    if (there) ++arg;
    return there;
  };
  const bool bfloat16 = take("bfloat16");
  const bool with_mma = take("mma");
  const ops::Ops table = ops::cuda_ops(0, bfloat16 ? ops::DType::kBF16 : ops::DType::kF16);
  std::vector<int> counts;
  for (; arg < argc; ++arg) counts.push_back(std::clamp(std::atoi(argv[arg]), 1, 16384));
  if (counts.empty()) counts = {1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
  std::printf("microseconds; %-20s  floor", "N x K");
  for (const int m : counts) std::printf(" %8d", m);
  std::printf("\n");
  for (const gpu::Shape& s : gpu::kShapes) gpu::bench(table, s, counts, with_mma, stream.get());
  table.destroy(table.self);
  return 0;
}
