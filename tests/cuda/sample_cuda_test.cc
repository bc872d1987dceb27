// Sampling on the GPU against the CPU table, and against the plain reference where the two differ:
// rounding may move a draw or a filter by one token. With the argument "small" it runs a few rows
// of each kind, for tools that slow the GPU down a thousandfold.
#include <algorithm>
#include <limits>

#include "check.h"
#include "ops/philox.h"
#include "ops_cuda.h"
#include "sample_reference.h"
#include "sampler/pack_rows.h"

namespace treadle::cuda::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Result {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<ops::TopLogprob> top;
};

template <class T>
std::vector<T> typed(const Memory& memory) {
  const std::vector<char> bytes = memory.get();
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Result run(const ops::Ops& ops, const std::vector<float>& logits, int32_t vocab,
           const std::vector<ops::SampleRow>& rows) {
  Memory x(ops, logits.data(), logits.size() * 4);
  const std::vector<char> nans =
      poison(rows.size() * ops::kMaxTopLogprobs * sizeof(ops::TopLogprob));
  Memory tokens(ops, nans.data(), rows.size() * 4);
  Memory logprobs(ops, nans.data(), rows.size() * 4);
  Memory top(ops, nans.data(), nans.size());
  Memory block(ops, sampler::packed_bytes(rows));
  std::vector<char> packed(block.bytes());
  sampler::pack_rows(rows, packed.data(), block.as<char>());
  block.set(packed.data(), packed.size());
  ops.sample(ops.self,
             {.logits = x.as<float>(),
              .rows = block.as<ops::SampleRow>(),
              .num_rows = int32_t(rows.size()),
              .vocab = vocab,
              .tokens = tokens.as<int32_t>(),
              .logprobs = logprobs.as<float>(),
              .top = top.as<ops::TopLogprob>()},
             {});
  return {typed<int32_t>(tokens), typed<float>(logprobs), typed<ops::TopLogprob>(top)};
}

bool same_bits(const void* a, const void* b, size_t n) { return std::memcmp(a, b, n) == 0; }

class SampleTest {
 public:
  SampleTest(const ops::Ops& cpu, const ops::Ops& gpu, Report& report)
      : cpu_(cpu), gpu_(gpu), report_(report) {}

  void compare(const std::string& name, const std::vector<float>& logits, int32_t vocab,
               const std::vector<ops::SampleRow>& rows) {
    const Result want = run(cpu_, logits, vocab, rows);
    const Result got = run(gpu_, logits, vocab, rows);
    report_.check(same(got, run(gpu_, logits, vocab, rows), rows), name + ": two runs differ");
    // A few of the rows alone, which many blocks may share.
    const std::vector<ops::SampleRow> few(rows.begin(), rows.begin() + long(rows.size() + 4) / 5);
    report_.check(same(got, run(gpu_, logits, vocab, few), few),
                  name + ": the other rows of the batch make a difference");
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::string at = name + " row " + std::to_string(i);
      const ops::SampleRow& r = rows[i];
      ++rows_;
      bool equal = want.tokens[i] == got.tokens[i];
      if (!equal) {
        ++moved_;
        const std::vector<float> row(logits.begin() + long(i) * vocab,
                                     logits.begin() + long(i + 1) * vocab);
        report_.check(plausible(r, row, got.tokens[i]),
                      at + ": token " + std::to_string(got.tokens[i]) + ", CPU " +
                          std::to_string(want.tokens[i]) + " (T " + std::to_string(r.temperature) +
                          " k " + std::to_string(r.top_k) + " p " + std::to_string(r.top_p) +
                          " min " + std::to_string(r.min_p) + ")");
      } else {
        report_.check(true, at);
      }
      if (r.num_logprobs < 0) continue;
      if (equal) {
        const float a = got.logprobs[i];
        const float b = want.logprobs[i];
        report_.check(a == b || std::fabs(a - b) <= 2e-5F * (1.0F + std::fabs(b)),
                      at + ": logprob " + std::to_string(a) + ", CPU " + std::to_string(b));
      }
      for (int k = 0; k < r.num_logprobs; ++k) {
        const auto& a = got.top[i * ops::kMaxTopLogprobs + size_t(k)];
        const auto& b = want.top[i * ops::kMaxTopLogprobs + size_t(k)];
        report_.check(a.token == b.token &&
                          (a.logprob == b.logprob || std::fabs(a.logprob - b.logprob) <=
                                                         2e-5F * (1.0F + std::fabs(b.logprob))),
                      at + ": top " + std::to_string(k) + " is " + std::to_string(a.token) + " " +
                          std::to_string(a.logprob) + ", CPU " + std::to_string(b.token) + " " +
                          std::to_string(b.logprob));
      }
    }
  }

  void print_moved() const {
    std::printf("sampling: %d of %d draws differ from the CPU's by rounding\n", moved_, rows_);
    report_.check(moved_ * 100 <= rows_, "more than 1% of the draws differ from the CPU's");
  }

 private:
  static bool same(const Result& a, const Result& b, const std::vector<ops::SampleRow>& rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (a.tokens[i] != b.tokens[i]) return false;
      const int count = rows[i].num_logprobs;
      if (count >= 0 && !same_bits(&a.logprobs[i], &b.logprobs[i], sizeof(float))) return false;
      const size_t top = i * ops::kMaxTopLogprobs;
      if (count > 0 && !same_bits(&a.top[top], &b.top[top], size_t(count) * sizeof a.top[0])) {
        return false;
      }
    }
    return true;
  }

  static bool plausible(const ops::SampleRow& r, const std::vector<float>& logits, int32_t token) {
    if (token < 0) return false;
    const std::vector<double> x = ops::reference::adjusted(r, logits);
    const ops::reference::Kept kept = ops::reference::kept_tokens(r, x);
    if (kept.near_boundary) return true;
    const ops::reference::Slot slot = ops::reference::slot_of(kept, token);
    const double u = ops::sample_uniform(r.seed, r.stream, r.position);
    return u >= slot.low - 1e-5 && u <= slot.high + 1e-5;
  }

  const ops::Ops& cpu_;
  const ops::Ops& gpu_;
  Report& report_;
  int rows_ = 0;
  int moved_ = 0;
};

struct Pools {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<ops::LogitBias>> biases;
};

std::vector<ops::SampleRow> random_rows(std::mt19937& rng, int count, int32_t vocab, Pools& pools) {
  const auto pick = [&](std::initializer_list<float> values) {
    return *(values.begin() + rng() % values.size());
  };
  const auto id = [&] { return int32_t(rng() % uint32_t(vocab)); };
  std::vector<ops::SampleRow> rows;
  pools.ids.reserve(pools.ids.size() + size_t(count) * 2);
  pools.biases.reserve(pools.biases.size() + size_t(count));
  for (int i = 0; i < count; ++i) {
    ops::SampleRow r;
    r.temperature = pick({0.0F, 0.01F, 0.3F, 0.7F, 1.0F, 1.0F, 1.0F, 1.5F, 50.0F, 1e-30F, 3e38F});
    r.top_k = int32_t(pick({0, 0, 0, 1, 2, 5, 40, 50, 256, 257, 900, 3000, 20000}));
    r.top_p = pick({1.0F, 1.0F, 0.1F, 0.5F, 0.9F, 0.95F, 0.999F});
    r.min_p = pick({0.0F, 0.0F, 0.05F, 0.5F, 1.0F});
    r.seed = rng();
    r.stream = rng() % 3;
    r.position = rng() % 100;
    if (rng() % 2 == 0) {
      r.repetition_penalty = pick({1.0F, 1.1F, 0.8F});
      r.presence_penalty = pick({0.0F, 0.5F, -0.5F});
      r.frequency_penalty = pick({0.0F, 0.3F});
      auto& history = pools.ids.emplace_back(rng() % 600);
      const int32_t few = std::max(1, vocab / 8);
      for (int32_t& t : history) t = id() % few;
      r.history = history.data();
      r.history_len = int32_t(history.size());
      r.output_begin = history.empty() ? 0 : int32_t(rng() % history.size());
    }
    if (rng() % 4 == 0) {
      auto& bias = pools.biases.emplace_back();
      for (int b = 0; b < 20; ++b) {
        const int32_t token = id();
        if (std::any_of(bias.begin(), bias.end(), [&](auto& e) { return e.token == token; }))
          continue;
        bias.push_back({token, b % 7 == 0 ? -kInf : float(b) - 8.0F});
      }
      r.bias = bias.data();
      r.bias_count = int32_t(bias.size());
    }
    if (rng() % 4 == 0) {
      auto& barred = pools.ids.emplace_back(std::min(30, vocab / 3));
      for (int32_t& t : barred) t = id();
      r.barred = barred.data();
      r.barred_count = int32_t(barred.size());
    }
    r.num_logprobs = int32_t(pick({-1, -1, 0, 1, 5, 20, 64}));
    if (rng() % 10 == 0) r.forced_token = id();
    rows.push_back(r);
  }
  return rows;
}

constexpr int kKinds = 9;

std::vector<float> logits_of(std::mt19937& rng, int kind, int rows, int32_t vocab) {
  const size_t n = size_t(rows) * size_t(vocab);
  std::vector<float> x(n);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  for (size_t i = 0; i < n; ++i) {
    const float z = normal(rng);
    switch (kind) {
      case 0:
        x[i] = z;
        break;  // flat
      case 1:
        x[i] = 4.0F * z;
        break;  // peaked
      case 2:
        x[i] = std::round(2.0F * z) / 2.0F;
        break;  // many ties
      case 3:
        x[i] = 1.0F;
        break;  // all equal
      case 4:
        x[i] = z * z * z * 3.0F - 5.0F;
        break;  // long tails
      case 5:
        x[i] = rng() % 3 == 0 ? z : -kInf;
        break;  // mostly barred
      case 6:
        x[i] = rng() % 1000 == 0 ? 20.0F + z : z;
        break;  // a few far above the others
      case 7:
        x[i] = rng() % 2000 == 0 ? 20.0F + z : -kInf;
        break;  // a few alone
      default:
        x[i] = i % size_t(vocab) / 4 % size_t(std::max(vocab / 4096, 1)) == 0 ? z - 30.0F : z;
        break;  // what is sampled is low, whatever the vocabularies whose sample has this stride
    }
  }
  return x;
}

void test_damaged(SampleTest& test) {
  const int32_t vocab = 1000;
  std::mt19937 rng(5);
  std::vector<float> x = logits_of(rng, 0, 8, vocab);
  x[size_t(0) * vocab + 999] = kNaN;
  x[size_t(1) * vocab + 3] = kInf;
  for (int i = 0; i < vocab; ++i) x[size_t(2) * vocab + size_t(i)] = -kInf;
  for (int i = 0; i < vocab; ++i) x[size_t(3) * vocab + size_t(i)] = i == 77 ? -3.0F : -kInf;
  x[size_t(4) * vocab + 10] = 3.4e38F;
  x[size_t(4) * vocab + 11] = -3.4e38F;
  x[size_t(5) * vocab + 10] = -0.0F;
  for (int i = 0; i < vocab; ++i) x[size_t(6) * vocab + size_t(i)] = i % 2 == 0 ? 0.0F : -0.0F;
  const ops::LogitBias huge[] = {
      {10, 3.0e38F}, {12, -3.0e38F}, {10, 2.0F}, {5000, 1.0F}, {-1, 1.0F}};
  const int32_t out_of_range[] = {-5, 1000, 2000000, 8};
  for (const float temperature : {0.0F, 1.0F}) {
    for (const auto& [top_k, top_p] : {std::pair(0, 1.0F), {40, 1.0F}, {300, 0.9F}, {0, 0.9F}}) {
      std::vector<ops::SampleRow> rows(8);
      for (size_t i = 0; i < 8; ++i) {
        rows[i].temperature = temperature;
        rows[i].top_k = top_k;
        rows[i].top_p = top_p;
        rows[i].num_logprobs = 5;
        rows[i].seed = 100 + i;
      }
      rows[4].bias = huge;
      rows[4].bias_count = 5;
      rows[7].barred = out_of_range;
      rows[7].barred_count = 4;
      rows[7].history = out_of_range;
      rows[7].history_len = 4;
      rows[7].repetition_penalty = 1.3F;
      rows[7].frequency_penalty = 0.4F;
      test.compare("damaged", x, vocab, rows);
    }
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

int main(int argc, char** argv) {
  namespace test = treadle::cuda::testing;
  namespace ops = treadle::ops;
  if (ops::cuda_device_count() == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  const bool small = argc > 1 && std::string(argv[1]) == "small";
  test::Report report;
  const ops::Ops cpu = ops::cpu_ops(0);
  const ops::Ops gpu = ops::cuda_ops(0);
  test::SampleTest sampling(cpu, gpu, report);
  std::mt19937 rng(7);
  // One block and several per row, vocabularies that are no whole number of vectors, and one that
  // does not fit the shared memory of a cluster.
  std::vector<int32_t> vocabs = {7, 33, 1000, 4096, 32001, 152064, 256000, 400000};
  if (small) vocabs = {33, 1000, 9001, 32768};
  for (const int32_t vocab : vocabs) {
    const int rows = small            ? (vocab == 1000 ? 250 : 4)
                     : vocab < 40000  ? 120
                     : vocab < 200000 ? 40
                                      : 20;
    for (int kind = 0; kind < test::kKinds; ++kind) {
      test::Pools pools;
      const auto params = test::random_rows(rng, rows, vocab, pools);
      const auto logits = test::logits_of(rng, kind, rows, vocab);
      sampling.compare("vocab " + std::to_string(vocab) + " kind " + std::to_string(kind), logits,
                       vocab, params);
    }
  }
  test::test_damaged(sampling);
  if (!small) sampling.print_moved();
  gpu.destroy(gpu.self);
  cpu.destroy(cpu.self);
  return report.finish("sample_cuda_test");
}
