// The engine on the GPU: the demo model gives the CPU's greedy tokens, alone and together, over
// sessions and chunked prompts; seeds give the same tokens twice.
//
// Usage: engine_cuda_test <model directory>
#include <memory>
#include <optional>

#include "check.h"
#include "engine/factory.h"
#include "ops_cuda.h"
#include "reference_attention.h"
#include "treadle/engine.h"

namespace treadle::cuda::testing {
namespace {

using Ids = std::vector<int32_t>;

// "<s><|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n" in the demo model's tokens.
const std::vector<Ids> kQuestions = {
    {1, 3, 310, 15, 1878, 1223, 3744, 4, 15, 3, 312, 15},
    {1, 3, 310, 15, 934, 4, 15, 3, 312, 15},
    {1, 3, 310, 15, 455, 271, 290, 452, 359, 2291, 3744, 4, 15, 3, 312, 15},
    {1, 3, 310, 15, 2666, 3721, 906, 3707, 482, 730, 3744, 4, 15, 3, 312, 15}};
const Ids kFollowUp = {4, 15, 3, 310, 15, 934, 4, 15, 3, 312, 15};

std::unique_ptr<Engine> load(const std::string& path, ops::Ops backend, int32_t quant_policy) {
  EngineConfig config;
  config.quant_policy = quant_policy;
  config.max_batch_size = 32;
  config.max_prefill_token_num = 128;  // long prompts come in chunks
  config.cache_max_entry_count = 400;
  config.random_seed = 1;
  return EngineFactory::load(path, config, backend);
}

struct Answer {
  Ids ids;
  std::vector<PositionLogprobs> logprobs;
  std::string error;
};

Answer read(Stream& stream) {
  Answer answer;
  while (auto out = stream.next()) {
    answer.ids.insert(answer.ids.end(), out->token_ids.begin(), out->token_ids.end());
    answer.logprobs.insert(answer.logprobs.end(), out->logprobs.begin(), out->logprobs.end());
    if (out->finish_reason == FinishReason::kError) answer.error = out->error_message;
  }
  return answer;
}

Request request(const Ids& ids, float temperature = 0.0F) {
  Request r;
  r.input_ids = ids;
  r.sampling.max_new_tokens = 60;
  r.sampling.temperature = temperature;
  r.sampling.logprobs = 2;
  r.sampling.seed = 42;
  return r;
}

std::string text_of(const Ids& ids) {
  std::string text;
  for (const int32_t id : ids) text += " " + std::to_string(id);
  return text;
}

/// Equal, or the first difference is a tie to half precision; then the rest may differ.
void compare(Report& report, const std::string& name, const Answer& got, const Answer& want,
             int& ties) {
  report.check(got.error.empty() && want.error.empty(), name + ": " + got.error + want.error);
  size_t i = 0;
  while (i < got.ids.size() && i < want.ids.size() && got.ids[i] == want.ids[i]) ++i;
  bool tie = false;
  if (i < want.logprobs.size() && i < got.ids.size() && want.logprobs[i].top.size() == 2) {
    tie = want.logprobs[i].top[0].logprob - want.logprobs[i].top[1].logprob < 0.02F;
  }
  const bool equal = got.ids == want.ids;
  if (!equal && tie) ++ties;
  report.check((equal || tie) && !got.ids.empty(),
               name + ":\n  GPU" + text_of(got.ids) + "\n  CPU" + text_of(want.ids));
  double error = 0.0;
  for (size_t j = 0; j < i && j < got.logprobs.size(); ++j) {
    error = std::max(
        error, std::fabs(double{got.logprobs[j].chosen.logprob} - want.logprobs[j].chosen.logprob));
  }
  report.check(error < 0.05, name + ": a logprob is off by " + std::to_string(error));
}

std::vector<Ids> prompts() {
  std::vector<Ids> all = kQuestions;
  for (const int repeats : {3, 10, 25}) {
    Ids longer;
    for (int i = 0; i < repeats; ++i) {
      const Ids& q = kQuestions[size_t(i) % kQuestions.size()];
      longer.insert(longer.end(), q.begin() + (i == 0 ? 0 : 1), q.end() - 3);
    }
    longer.insert(longer.end(), {3, 312, 15});
    all.push_back(longer);
  }
  return all;
}

std::vector<Answer> together(Engine& engine, const std::vector<Ids>& all, float temperature,
                             int copies) {
  std::vector<Stream> streams;
  for (int c = 0; c < copies; ++c) {
    for (const Ids& ids : all) streams.push_back(engine.submit(request(ids, temperature)));
  }
  std::vector<Answer> answers;
  for (Stream& s : streams) answers.push_back(read(s));
  return answers;
}

Answer ask(Engine& engine, const Ids& ids, std::optional<uint64_t> session = {}) {
  Request r = request(ids);
  r.session_id = session;
  Stream stream = engine.submit(r);
  return read(stream);
}

void run(const std::string& path, Report& report, bool own_attention, int32_t quant_policy) {
  const auto cpu = load(path, ops::cpu_ops(0), quant_policy);
  ops::Ops table = ops::cuda_ops(0);
  if (!own_attention) {
    table.attention = reference_attention;
    table.attention_makes_qkv = nullptr;
    table.replay = nullptr;  // it waits for the device, which cannot be recorded
  }
  const auto gpu = load(path, table, quant_policy);
  std::printf("engine on %s, %s attention, KV of %s\n", gpu->info().device.c_str(),
              own_attention ? "the backend's" : "reference", gpu->info().kv_dtype.c_str());
  int ties = 0;
  const std::vector<Ids> all = prompts();
  for (size_t i = 0; i < all.size(); ++i) {
    compare(report, "alone " + std::to_string(i), ask(*gpu, all[i]), ask(*cpu, all[i]), ties);
  }
  const auto want = together(*cpu, all, 0.0F, 1);
  const auto got = together(*gpu, all, 0.0F, 4);
  for (size_t i = 0; i < got.size(); ++i) {
    compare(report, "together " + std::to_string(i), got[i], want[i % want.size()], ties);
  }
  for (int turn = 0; turn < 6; ++turn) {
    const Ids& ids = turn == 0 ? kQuestions[0] : kFollowUp;
    compare(report, "session turn " + std::to_string(turn), ask(*gpu, ids, 9), ask(*cpu, ids, 9),
            ties);
  }
  const auto first = together(*gpu, all, 0.8F, 1);
  const auto second = together(*gpu, all, 0.8F, 1);
  for (size_t i = 0; i < first.size(); ++i) {
    report.check(first[i].error.empty() && !first[i].ids.empty(), "sampled: " + first[i].error);
    report.check(first[i].ids == second[i].ids, "a seed gives other tokens the second time");
  }
  report.check(gpu->health().ok, "health: " + gpu->health().cause);
  std::printf("%d answers part at a tie\n", ties);
}

}  // namespace
}  // namespace treadle::cuda::testing

int main(int argc, char** argv) {
  namespace test = treadle::cuda::testing;
  if (argc != 2) {
    std::printf("usage: %s <model directory>\n", argv[0]);
    return 2;
  }
  if (treadle::ops::cuda_device_count() == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  test::Report report;
  try {
    test::run(argv[1], report, false, 0);
    test::run(argv[1], report, true, 0);
    test::run(argv[1], report, true, 8);
  } catch (const treadle::Error& error) {
    report.check(false, std::string("exception: ") + error.what());
  }
  return report.finish("engine_cuda_test");
}
