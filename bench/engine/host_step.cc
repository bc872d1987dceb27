// The host's work in a step with many running sequences, and whether it grows with the number of
// cached blocks. Everything is real but the device, which does nothing.
//
//   host_step [--sequences N] [--rounds N] [--unread] [MODEL_DIR]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <treadle/engine.h>

#include "engine/factory.h"
#include "null_ops.h"

namespace treadle::bench {
namespace {

constexpr int32_t kPromptTokens = 1000;
constexpr int32_t kNewTokens = 240;
constexpr int kSteps = 200;
constexpr int32_t kBlockTokens = 64;
constexpr int32_t kSessionLen = 4096;

struct Options {
  std::string model = TREADLE_DEMO_MODEL;
  int32_t sequences = 256;
  int rounds = 7;
  bool unread = false;  // nobody reads: outputs are merged
};

struct Figures {
  double host_us = 0;  // drain, retire, schedule, batch and emit
  double step_us = 0;  // with index uploads, sampling rows and results
};

Request request(int32_t prompt_tokens, int32_t new_tokens, std::mt19937& random) {
  Request r;
  r.input_ids.reserve(static_cast<size_t>(prompt_tokens));
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    r.input_ids.push_back(3 + static_cast<int32_t>(random() % 4000));
  }
  r.sampling.max_new_tokens = new_tokens;
  r.sampling.temperature = 0.0F;
  r.sampling.ignore_eos = true;
  return r;
}

void finish(std::vector<Stream>& streams) {
  for (Stream& stream : streams) {
    while (stream.next()) {
    }
  }
  streams.clear();
}

// Nearly every block holds something: whoever needs more than a few evicts them.
void fill(Engine& engine, std::mt19937& random) {
  std::vector<Stream> streams;
  while (engine.stats().blocks_free > 32) {
    for (int i = 0; i < 16; ++i) {
      streams.push_back(engine.submit(request(kSessionLen - 1, 1, random)));
    }
    finish(streams);
  }
}

Figures measure(Engine& engine, Gate& gate, const Options& options, std::mt19937& random) {
  // The engine is held while they are submitted, so that all of them run together.
  gate.stop_at(1, 1);
  std::vector<Stream> streams;
  streams.push_back(engine.submit(request(1, 1, random)));
  gate.wait_until_stopped();
  for (int32_t i = 0; i < options.sequences; ++i) {
    streams.push_back(engine.submit(request(kPromptTokens, kNewTokens, random)));
  }
  // Only steps in which all of them decode count; the first one may still hold some of a prompt.
  gate.stop_at(options.sequences, 3);
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done && !options.unread) {
      for (Stream& stream : streams) stream.try_next();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  gate.wait_until_stopped();
  const Stats begin = engine.stats();
  const double stopped = gate.seconds();
  gate.stop_at(options.sequences, kSteps);
  gate.wait_until_stopped();
  const Stats end = engine.stats();
  const double waited = gate.seconds() - stopped;
  gate.open();
  done = true;
  reader.join();
  finish(streams);
  const auto steps = static_cast<double>(end.steps - begin.steps);
  return {.host_us = (end.host_seconds - begin.host_seconds) / steps * 1e6,
          .step_us = (end.step_seconds - begin.step_seconds - waited) / steps * 1e6};
}

Figures median_of(Engine& engine, Gate& gate, const Options& options, std::mt19937& random) {
  std::vector<double> host;
  std::vector<double> step;
  for (int i = 0; i < options.rounds; ++i) {
    const Figures f = measure(engine, gate, options, random);
    host.push_back(f.host_us);
    step.push_back(f.step_us);
  }
  std::ranges::sort(host);
  std::ranges::sort(step);
  return {.host_us = host[host.size() / 2], .step_us = step[step.size() / 2]};
}

Figures run(int32_t cached_blocks, const Options& options) {
  const int32_t active = options.sequences * ((kPromptTokens + kBlockTokens - 1) / kBlockTokens);
  const EngineConfig config{.session_len = kSessionLen,
                            .max_batch_size = options.sequences,
                            .cache_max_entry_count = double(active + cached_blocks),
                            .max_prefill_token_num = 16 * kSessionLen};
  Gate gate;
  const auto engine = EngineFactory::load(options.model, config, null_ops(gate));
  std::mt19937 random(1);
  fill(*engine, random);
  measure(*engine, gate, options, random);  // warms up
  return median_of(*engine, gate, options, random);
}

int main_with(const Options& options) {
  std::printf("%d running sequences of %d to %d tokens, outputs %s\n\n", options.sequences,
              kPromptTokens, kPromptTokens + kNewTokens, options.unread ? "unread" : "read");
  std::printf(
      "| cached blocks | host work per step | whole step on a device that does nothing |\n");
  std::printf("|---|---|---|\n");
  double first = 0;
  double last = 0;
  for (const int32_t cached : {1000, 10000, 100000}) {
    const Figures f = run(cached, options);
    std::printf("| %d | %.0f us | %.0f us |\n", cached, f.host_us, f.step_us);
    std::fflush(stdout);
    (first == 0 ? first : last) = f.host_us;
  }
  const bool met = last < 200 && last < 1.5 * first;
  std::printf(
      "\ntarget (under 200 us and flat): %s, %.2f times as much with 100 times the blocks\n",
      met ? "met" : "missed", last / first);
  return met ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace treadle::bench

int main(int argc, char** argv) {
  treadle::bench::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--unread") {
      options.unread = true;
    } else if (arg == "--sequences" && i + 1 < argc) {
      options.sequences = std::atoi(argv[++i]);
    } else if (arg == "--rounds" && i + 1 < argc) {
      options.rounds = std::atoi(argv[++i]);
    } else {
      options.model = arg;
    }
  }
  try {
    return treadle::bench::main_with(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "host_step: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
