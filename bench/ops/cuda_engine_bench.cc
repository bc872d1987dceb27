// The whole engine on the GPU without Python, for a quick look and for profilers: decode step by
// batch size and time to first token, on any model directory. Greedy, end tokens ignored, prefix
// cache off, fresh random prompts. A decode step is (T(n) - T(1)) / (n - 1), T(n) the time until
// every request has its n tokens. The figures that count come from bench/engine/gpu_workloads.py.
//
// Usage: cuda_engine_bench <model directory> [output tokens, default 256]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "engine/factory.h"
#include "ops_cuda.h"
#include "treadle/engine.h"

namespace treadle {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Bench {
 public:
  explicit Bench(Engine& engine) : engine_(engine) {}

  /// Seconds until `batch` requests of `input` tokens have `output` tokens each.
  double run(int batch, int input, int output) {
    std::vector<Request> requests(static_cast<size_t>(batch));
    for (Request& r : requests) {
      r.input_ids.resize(static_cast<size_t>(input));
      for (int32_t& id : r.input_ids) {
        id = static_cast<int32_t>(rng_() % static_cast<uint32_t>(engine_.info().vocab_size));
      }
      r.sampling.max_new_tokens = output;
      r.sampling.temperature = 0.0F;
      r.sampling.ignore_eos = true;
    }
    const Clock::time_point start = Clock::now();
    std::vector<Stream> streams;
    for (Request& r : requests) streams.push_back(engine_.submit(std::move(r)));
    for (Stream& s : streams) {
      while (const auto out = s.next()) {
        if (out->finish_reason == FinishReason::kError) {
          std::printf("error: %s\n", out->error_message.c_str());
          std::exit(1);
        }
      }
    }
    return seconds_since(start);
  }

  double median(int batch, int input, int output) {
    std::vector<double> times;
    for (int i = 0; i < 3; ++i) times.push_back(run(batch, input, output));
    std::sort(times.begin(), times.end());
    return times[1];
  }

 private:
  Engine& engine_;
  std::mt19937 rng_{1};
};

}  // namespace
}  // namespace treadle

int main(int argc, char** argv) {
  using namespace treadle;  // NOLINT: a program of one file
  if (argc < 2) {
    std::printf("usage: %s <model directory> [output tokens]\n", argv[0]);
    return 2;
  }
  const int output = argc > 2 ? std::atoi(argv[2]) : 256;
  const Clock::time_point start = Clock::now();
  EngineConfig config;
  config.max_batch_size = 256;
  config.max_prefill_token_num = 8192;
  config.cache_max_entry_count = 0.8;
  config.session_len = 20000;
  config.enable_prefix_caching = false;
  std::unique_ptr<Engine> engine;
  try {
    engine = EngineFactory::load(argv[1], config, ops::cuda_ops(0));
  } catch (const Error& error) {
    std::printf("error: %s\n", error.what());
    return 1;
  }
  const double loaded = seconds_since(start);
  Bench bench(*engine);
  bench.run(1, 16, 1);
  const ModelInfo& info = engine->info();
  std::printf("%.1f GB of weights, %d KV blocks; loaded in %.2f s, first token after %.2f s\n",
              double(info.weight_bytes) * 1e-9, info.kv_blocks, loaded, seconds_since(start));
  std::printf("\ninput 128, output %d\n%6s %9s %12s %10s\n", output, "batch", "step ms", "tok/s",
              "host us");
  for (const int batch : {1, 8, 32, 64, 128, 256}) {
    bench.run(batch, 128, 4);
    const double first = bench.median(batch, 128, 1);
    const Stats before = engine->stats();
    const double all = bench.median(batch, 128, output);
    const Stats after = engine->stats();
    const double host = (after.host_seconds - before.host_seconds) /
                        static_cast<double>(after.steps - before.steps);
    std::printf("%6d %9.3f %12.0f %10.0f\n", batch, 1e3 * (all - first) / (output - 1),
                batch * output / all, host * 1e6);
    std::fflush(stdout);
  }
  std::printf("\ntime to first token, ms\n");
  struct Prompt {
    int batch, input;
  };
  for (const auto& [batch, input] :
       {Prompt{1, 512}, {1, 2048}, {1, 8192}, {1, 16384}, {16, 1024}}) {
    bench.run(batch, input, 1);
    std::printf("%4d x %5d %9.1f\n", batch, input, 1e3 * bench.median(batch, input, 1));
    std::fflush(stdout);
  }
  const double first = bench.median(1, 8192, 1);
  const double all = bench.median(1, 8192, output);
  std::printf("\nbatch 1 at 8192: step %.3f ms\n", 1e3 * (all - first) / (output - 1));
  return 0;
}
