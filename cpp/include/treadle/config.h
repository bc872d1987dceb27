// What can be chosen when an engine is loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace treadle {

/// Engine options. Every default works; names follow LMDeploy's where one exists.
struct EngineConfig {
  /// "auto", "cpu", "cuda" (the first GPU) or "cuda:N". "auto" takes the first GPU that this build
  /// can run the model on, else the CPU; ModelInfo::device_note says why one is left alone.
  std::string device = "auto";

  /// "auto", "float16", "bfloat16" or "float32". On a GPU: type of weights, activations and KV
  /// cache; "auto" is that of the weights, float16 for float32 weights, and "float32" is refused.
  /// The CPU computes in float32 and keeps weights as they are stored; there it is the KV cache's
  /// type, "auto" that of the weights.
  std::string dtype = "auto";

  /// Longest history + prompt + output of a sequence, in tokens; 0 = the model's own maximum.
  /// Lowered to what the KV pool holds when that is less.
  int32_t session_len = 0;

  /// Most sequences in one step of the batch loop; 0 = 64 on a CPU, 256 on a GPU.
  int32_t max_batch_size = 0;

  /// KV pool: a fraction (0, 1] of the memory left after weights and workspace, or, above 1, a
  /// whole number of 64-token blocks. 0 = automatic: 0.8 on a GPU; on a CPU what max_batch_size
  /// sequences of session_len need, but at most half of the free memory and 4 GiB.
  double cache_max_entry_count = 0.0;

  /// Most prompt tokens computed in one step (chunked prefill); 0 = 512 on a CPU, 8192 on a GPU.
  int32_t max_prefill_token_num = 0;

  /// Tensor-parallel degree. Only 1 in this version.
  int32_t tp = 1;

  /// Dynamic NTK scaling factor that overrides the model's RoPE scaling; 0 = as the model says.
  double rope_scaling_factor = 0.0;

  /// logn attention scaling beyond the training length: -1 as the model says, 0 off, 1 on.
  int32_t use_logn_attn = -1;

  /// KV quantisation: 0 none, 8 int8, -1 as a workspace's config.ini says, none elsewhere.
  int32_t quant_policy = -1;

  /// CPU threads, the engine's own included; 0 = the cores this process may run on.
  int32_t num_threads = 0;

  /// Longest waiting line; one more request is refused with ErrorCode::kQueueFull.
  int32_t max_queue_size = 4096;

  /// Sessions kept at most; the longest idle one is dropped for a new one.
  int32_t max_sessions = 4096;

  /// Seconds after which an idle session is dropped.
  double session_ttl_s = 3600.0;

  /// Share full KV blocks between all requests that begin with the same tokens. When false only a
  /// session's own turns reuse its blocks.
  bool enable_prefix_caching = true;

  /// Seed of requests that bring none; 0 = drawn from the system at load.
  uint64_t random_seed = 0;

  /// Called on the loading thread with (bytes done, bytes in all) of the weights. May be empty.
  std::function<void(int64_t done, int64_t total)> on_load_progress;
};

}  // namespace treadle
