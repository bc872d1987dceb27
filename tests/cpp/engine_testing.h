// Helpers of the engine's tests: a tiny model made on the spot, requests, and reading streams.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <treadle/engine.h>

#include "engine/factory.h"
#include "loader_testing.h"
#include "overlap_ops.h"

namespace treadle {

inline void PrintTo(const TokenLogprob& at, std::ostream* out) {
  *out << at.token_id << ':' << at.logprob;
}
inline void PrintTo(const PositionLogprobs& at, std::ostream* out) { PrintTo(at.chosen, out); }
// Bit for bit: not-a-number equals itself.
inline bool operator==(const TokenLogprob& a, const TokenLogprob& b) {
  return a.token_id == b.token_id && std::memcmp(&a.logprob, &b.logprob, sizeof(float)) == 0;
}
inline bool operator==(const PositionLogprobs& a, const PositionLogprobs& b) {
  return a.chosen == b.chosen && a.top == b.top;
}

}  // namespace treadle

namespace treadle::testing {

using Ids = std::vector<int32_t>;

/// The files of a random llama of one head size and two layers. Its end token is 2.
class RandomModel {
 public:
  RandomModel(int64_t vocab, int64_t hidden) {
    const std::string v = std::to_string(vocab);
    const std::string h = std::to_string(hidden);
    dir_.write("config.json", R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "vocab_size": )" + v + R"(, "hidden_size": )" +
                                  h + R"(,
      "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
      "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
      "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"})");
    put("model.embed_tokens.weight", {vocab, hidden}, 1.0F);
    put("lm_head.weight", {vocab, hidden}, 0.4F);
    put("model.norm.weight", {hidden}, 1.0F);
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      put(layer + "input_layernorm.weight", {hidden}, 1.0F);
      put(layer + "post_attention_layernorm.weight", {hidden}, 1.0F);
      put(layer + "self_attn.q_proj.weight", {64, hidden}, 0.3F);
      put(layer + "self_attn.k_proj.weight", {32, hidden}, 0.3F);
      put(layer + "self_attn.v_proj.weight", {32, hidden}, 0.3F);
      put(layer + "self_attn.o_proj.weight", {hidden, 64}, 0.3F);
      put(layer + "mlp.gate_proj.weight", {80, hidden}, 0.3F);
      put(layer + "mlp.up_proj.weight", {80, hidden}, 0.3F);
      put(layer + "mlp.down_proj.weight", {hidden, 80}, 0.3F);
    }
    dir_.write("model.safetensors", safetensors_file(tensors_));
    tensors_.clear();
  }
  std::string path() const { return dir_.path(); }

 private:
  void put(const std::string& name, const std::vector<int64_t>& shape, float scale) {
    std::normal_distribution<float> normal(0.0F, scale);
    TestTensor tensor{"F32", shape, {}};
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    for (int64_t i = 0; i < count; ++i) {
      tensor.values.push_back(shape.size() == 1 ? 1.0F : normal(random_));
    }
    tensors_.emplace(name, std::move(tensor));
  }

  TempDir dir_;
  TestTensors tensors_;
  std::mt19937 random_{5};
};

/// Written once per process.
inline std::string tiny_model() {
  static const RandomModel model(320, 48);
  return model.path();
}

/// One with a vocabulary that logits of many rows do not fit their workspace.
inline std::string wide_model() {
  static const RandomModel model(90000, 8);
  return model.path();
}

/// The bundled model: half precision, 8 layers.
inline std::string demo_model() { return TREADLE_DEMO_MODEL; }

inline EngineConfig tiny_config() {
  return {.max_batch_size = 8,
          .cache_max_entry_count = 64,
          .max_prefill_token_num = 96,
          .num_threads = 1,
          .random_seed = 11};
}

/// Tokens: many seconds' worth. A request for so many runs until it is cancelled.
constexpr int32_t kForever = 2000 * 64;

inline EngineConfig int8_config() {
  EngineConfig config = tiny_config();
  config.quant_policy = 8;
  return config;
}

/// For such requests.
inline EngineConfig endless_config() {
  EngineConfig config = tiny_config();
  config.session_len = kForever;
  config.cache_max_entry_count = kForever / 64;
  return config;
}

/// The backend of the engines under test. Programs built with TREADLE_TEST_OVERLAP put them all on
/// one that lets a step be queued behind another; nothing that a user sees may differ.
inline ops::Ops backend(int32_t num_threads) {
#ifdef TREADLE_TEST_OVERLAP
  return overlap_ops(num_threads);
#else
  return ops::cpu_ops(num_threads);
#endif
}

inline std::unique_ptr<Engine> load(const std::string& path, const EngineConfig& config) {
  return EngineFactory::load(path, config, backend(config.num_threads));
}

inline std::unique_ptr<Engine> tiny_engine(const EngineConfig& config = tiny_config()) {
  return load(tiny_model(), config);
}

/// Token ids that are neither special nor beyond any test model's vocabulary.
inline Ids some_ids(int32_t count, uint32_t seed) {
  std::mt19937 random(seed * 7919 + 13);
  Ids ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(3 + static_cast<int32_t>(random() % 300));
  return ids;
}

inline Ids join(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A request for exactly `max_new` of the likeliest tokens.
inline Request greedy(Ids ids, int32_t max_new) {
  Request request;
  request.input_ids = std::move(ids);
  request.sampling.max_new_tokens = max_new;
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  return request;
}

inline Request in_session(uint64_t id, Request request) {
  request.session_id = id;
  return request;
}

/// All that a continuation gave.
struct Result {
  Ids tokens;
  std::vector<PositionLogprobs> logprobs;
  std::vector<PositionLogprobs> prompt_logprobs;
  FinishReason reason = FinishReason::kNone;
  ErrorCode error = ErrorCode::kOk;
  std::string message;
  Usage usage;
  int outputs = 0;

  void add(const Output& out) {
    EXPECT_EQ(reason, FinishReason::kNone) << "an output after the last one";
    tokens.insert(tokens.end(), out.token_ids.begin(), out.token_ids.end());
    logprobs.insert(logprobs.end(), out.logprobs.begin(), out.logprobs.end());
    prompt_logprobs.insert(prompt_logprobs.end(), out.prompt_logprobs.begin(),
                           out.prompt_logprobs.end());
    reason = out.finish_reason;
    error = out.error;
    message = out.error_message;
    usage = out.usage;
    ++outputs;
  }
};

inline std::vector<Result> read_all(Stream& stream, int32_t n) {
  std::vector<Result> results(static_cast<size_t>(n));
  while (auto out = stream.next()) results.at(static_cast<size_t>(out->index)).add(*out);
  EXPECT_TRUE(stream.done());
  for (const Result& r : results) EXPECT_NE(r.reason, FinishReason::kNone);
  return results;
}

inline Result read(Stream& stream) { return read_all(stream, 1).front(); }

inline Result run(Engine& engine, Request request) {
  Stream stream = engine.submit(std::move(request));
  return read(stream);
}

/// Waits until `condition` holds; false after many seconds without.
inline bool eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 20000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

/// Once nothing is live: every counter has found its place and no block is held.
inline void expect_quiet(const Engine& engine) {
  const Stats s = engine.stats();
  EXPECT_EQ(s.running, 0);
  EXPECT_EQ(s.waiting, 0);
  EXPECT_EQ(s.blocks_active, 0);
  EXPECT_EQ(s.blocks_free + s.blocks_cached, engine.info().kv_blocks);
  EXPECT_EQ(s.requests_submitted, s.requests_finished + s.requests_cancelled + s.requests_failed);
}

}  // namespace treadle::testing
