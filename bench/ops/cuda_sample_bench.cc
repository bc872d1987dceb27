// Speed of the CUDA table's sampling operation, beside the time that one read of the logits takes.
//
// Times are medians of replayed graphs. Up to about 90 rows of 150 thousand logits fit the L2
// cache, where the output head leaves them in a decode step, too.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "graph_timing.h"
#include "ops_cuda.h"
#include "sampler/pack_rows.h"

namespace treadle::cuda {
namespace {

constexpr int kMostRows = 256;

struct Case {
  const char* name;
  float sigma;  // of the normal logits
  ops::SampleRow row;
};

std::vector<Case> make_cases(const std::vector<int32_t>& history) {
  ops::SampleRow penalties{.temperature = 1.0F,
                           .top_k = 50,
                           .top_p = 0.9F,
                           // Close to none, because the logits are changed in place run after run.
                           .repetition_penalty = 1.0001F,
                           .presence_penalty = 1e-4F,
                           .frequency_penalty = 1e-4F,
                           .history = history.data(),
                           .history_len = static_cast<int32_t>(history.size()),
                           .output_begin = static_cast<int32_t>(history.size() / 2)};
  return {{"greedy", 3.0F, {.temperature = 0.0F}},
          {"top-k 50", 3.0F, {.top_k = 50}},
          {"top-k 50, top-p 0.9", 3.0F, {.top_k = 50, .top_p = 0.9F}},
          {"top-k 1000", 3.0F, {.top_k = 1000}},
          {"top-k 5000, top-p 0.9", 3.0F, {.top_k = 5000, .top_p = 0.9F}},
          {"top-p 0.9, 10 tokens", 6.0F, {.temperature = 0.7F, .top_p = 0.9F}},
          {"top-p 0.95, 500 tokens", 4.0F, {.top_p = 0.95F}},
          {"top-p 0.9, 20 k tokens", 2.0F, {.top_p = 0.9F}},
          {"top-p 0.9, 90 k tokens", 1.0F, {.top_p = 0.9F}},
          {"min-p 0.05", 3.0F, {.min_p = 0.05F}},
          {"plain", 3.0F, {}},
          {"top-k 50, 20 logprobs", 3.0F, {.top_k = 50, .num_logprobs = 20}},
          {"top-p 0.9, 20 logprobs", 3.0F, {.top_p = 0.9F, .num_logprobs = 20}},
          {"penalties of 2048", 3.0F, penalties}};
}

class Bench {
 public:
  Bench(const ops::Ops& ops, cudaStream_t stream, int32_t vocab)
      : ops_(ops), stream_(stream), vocab_(vocab), elements_(size_t{kMostRows} * vocab) {
    logits_ = take<float>(elements_);
    tokens_ = take<int32_t>(kMostRows);
    logprobs_ = take<float>(kMostRows);
    top_ = take<ops::TopLogprob>(size_t{kMostRows} * ops::kMaxTopLogprobs);
    block_ = take<char>(kBlockBytes);
  }
  ~Bench() {
    for (void* p : memory_) ops_.release(ops_.self, p);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void fill(float sigma, const std::vector<float>& normal) {
    std::vector<float> host(elements_);
    for (size_t i = 0; i < elements_; ++i) {
      host[i] = sigma * normal[(i + i / vocab_ * 7919) & (normal.size() - 1)];
    }
    ops_.upload(ops_.self, logits_, host.data(), elements_ * sizeof(float), {});
    ops_.synchronize(ops_.self, {});
  }

  double microseconds(const ops::SampleRow& row, int32_t count) {
    std::vector<ops::SampleRow> rows(static_cast<size_t>(count), row);
    for (size_t i = 0; i < rows.size(); ++i) rows[i].seed = i;
    std::vector<char> packed(sampler::packed_bytes(rows));
    sampler::pack_rows(rows, packed.data(), block_);
    ops_.upload(ops_.self, block_, packed.data(), packed.size(), {stream_});
    const bool reports = row.num_logprobs >= 0;
    const ops::SampleParams p{.logits = logits_,
                              .rows = reinterpret_cast<ops::SampleRow*>(block_),
                              .num_rows = count,
                              .vocab = vocab_,
                              .tokens = tokens_,
                              .logprobs = reports ? logprobs_ : nullptr,
                              .top = reports ? top_ : nullptr};
    return 1e6 * graph_seconds(stream_, 10, [&](int) { ops_.sample(ops_.self, p, {stream_}); });
  }

 private:
  static constexpr size_t kBlockBytes = size_t{3} << 20;

  template <class T>
  T* take(size_t count) {
    memory_.push_back(ops_.alloc(ops_.self, count * sizeof(T)));
    return static_cast<T*>(memory_.back());
  }

  const ops::Ops& ops_;
  cudaStream_t stream_;
  const int32_t vocab_;
  const size_t elements_;
  std::vector<void*> memory_;
  float* logits_;
  int32_t* tokens_;
  float* logprobs_;
  ops::TopLogprob* top_;
  char* block_;
};

void bench_vocabulary(const ops::Ops& ops, cudaStream_t stream, int32_t vocab) {
  std::mt19937 rng(1);
  std::normal_distribution<float> gauss(0.0F, 1.0F);
  std::vector<float> normal(1 << 20);
  for (float& x : normal) x = gauss(rng);
  std::vector<int32_t> history(2048);
  for (int32_t& token : history) token = static_cast<int32_t>(rng() % (uint32_t(vocab) / 8));

  std::printf("\nvocabulary %d, microseconds\n%-24s", vocab, "rows");
  const int32_t counts[] = {1, 16, 32, 64, kMostRows};
  for (const int32_t count : counts) std::printf(" %8d", count);
  std::printf("\n%-24s", "one read at 4.2 TB/s");
  for (const int32_t count : counts) {
    std::printf(" %8.1f", 1e6 * 4.0 * count * vocab / kReadLimit);
  }
  std::printf("\n");
  Bench bench(ops, stream, vocab);
  float sigma = -1.0F;
  for (const Case& c : make_cases(history)) {
    if (c.sigma != sigma) bench.fill(sigma = c.sigma, normal);
    std::printf("%-24s", c.name);
    for (const int32_t count : counts) std::printf(" %8.1f", bench.microseconds(c.row, count));
    std::printf("\n");
  }
}

}  // namespace
}  // namespace treadle::cuda

int main() {
  namespace gpu = treadle::cuda;
  namespace ops = treadle::ops;
  if (ops::cuda_device_count() == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  const ops::Ops table = ops::cuda_ops(0, ops::DType::kF16);
  const gpu::StreamHandle stream = gpu::make_stream();
  for (const int32_t vocab : {128256, 152064}) gpu::bench_vocabulary(table, stream.get(), vocab);
  table.destroy(table.self);
  return 0;
}
