// The engine: loads a model directory and runs requests on it.
//
//   auto engine = treadle::Engine::load("models/llama", {.max_batch_size = 64});
//   auto stream = engine->submit({.session_id = 1, .input_ids = ids, .sampling = {.max_new_tokens =
//   64}}); while (auto out = stream.next()) consume(out->token_ids);
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "treadle/config.h"
#include "treadle/error.h"
#include "treadle/export.h"
#include "treadle/request.h"
#include "treadle/version.h"

namespace treadle {

/// What was loaded and what was made of the options. Sizes are in bytes, lengths in tokens.
struct ModelInfo {
  std::string architecture;  ///< as config.json names it
  std::string family;        ///< reader that understood it, for example "llama"
  std::string device;        ///< "cpu" or "cuda:N"
  std::string device_note;   ///< why device = "auto" leaves a GPU alone; else empty
  std::string model_name;    ///< that a workspace's config.ini gives; else empty
  std::string ignored_keys;  ///< of a workspace's config.ini: LMDeploy's that mean nothing here
  std::string dtype;         ///< of activations: what the device computes in
  std::string weight_dtype;
  std::string kv_dtype;
  bool kv_static_ranges = false;  ///< int8 KV with the model's calibrated ranges, not each token's
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;
  int32_t session_len = 0;  ///< in force, after all limits
  int32_t max_batch_size = 0;
  int32_t max_prefill_token_num = 0;
  std::vector<int32_t> eos_token_ids;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;  ///< of a step, and what the operations keep for themselves
  int64_t kv_bytes_per_token = 0;
  int64_t kv_pool_bytes = 0;
  int32_t kv_block_tokens = 64;
  int32_t kv_blocks = 0;
  int32_t num_threads = 0;
};

/// A consistent snapshot taken after a step. Counters only grow; gauges are of the moment.
struct Stats {
  int32_t running = 0;  ///< sequences in the batch
  int32_t waiting = 0;  ///< requests in the line (sequences that were preempted included)
  int32_t sessions = 0;
  int32_t blocks_free = 0;
  int32_t blocks_active = 0;
  int32_t blocks_cached = 0;
  uint64_t requests_submitted = 0;
  uint64_t requests_finished = 0;  ///< stop or length
  uint64_t requests_cancelled = 0;
  uint64_t requests_failed = 0;    ///< refused ones included
  uint64_t prompt_tokens = 0;      ///< asked for
  uint64_t computed_tokens = 0;    ///< prompt tokens run through the model, recomputation included
  uint64_t prefix_hit_tokens = 0;  ///< prompt tokens taken from cached or shared blocks
  uint64_t output_tokens = 0;
  uint64_t preemptions = 0;
  uint64_t evicted_blocks = 0;
  uint64_t copied_blocks = 0;  ///< copies on write
  uint64_t steps = 0;
  double step_seconds = 0.0;  ///< time spent in steps
  double host_seconds = 0.0;  ///< of it: drain, retire, schedule, batch and emit
  uint64_t ttft_count = 0;    ///< first tokens; mean time = ttft_seconds / ttft_count
  double ttft_seconds = 0.0;
  uint64_t itl_count = 0;  ///< later tokens; mean time per token = itl_seconds / itl_count
  double itl_seconds = 0.0;
};

struct Health {
  bool ok = true;
  std::string cause;  ///< why not, when ok is false
};

/// History of a session.
struct SessionInfo {
  uint64_t session_id = 0;
  std::vector<int32_t> token_ids;
  bool busy = false;  ///< a request of it is waiting or running
};

struct EngineFactory;  // internal

/// Thread safe: any method may be called from any thread at any time.
class TREADLE_API Engine {
 public:
  /// Loads a Hugging Face directory (config.json + safetensors) or a workspace. Throws Error.
  static std::unique_ptr<Engine> load(const std::string& path, const EngineConfig& config = {});

  /// Shuts down at once: live requests end with kShutdown.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Hands a request over. Throws Error when its parameters are invalid, when it could never fit or
  /// when the line is full; everything later arrives as a value on the stream.
  Stream submit(Request request);

  /// Cancels what runs or waits in the session; its history and the session stay. False when there
  /// is no such session or nothing to cancel.
  bool cancel(uint64_t session_id);

  /// Forgets a session; its requests are cancelled. False when there was none.
  bool end_session(uint64_t session_id);

  /// Empty when there is no such session.
  std::optional<SessionInfo> session(uint64_t session_id) const;

  const ModelInfo& info() const;
  Stats stats() const;
  Health health() const;

  /// Takes no more requests, lets live ones run on for at most `drain_seconds`, then ends the rest
  /// with kShutdown and stops the loop. Idempotent.
  void shutdown(double drain_seconds = 0.0);

 private:
  friend struct EngineFactory;
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace treadle
