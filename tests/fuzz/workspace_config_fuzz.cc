// Any text as a workspace's config.ini: either an Error with a clean message, or options within the
// ranges that EngineConfig has.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz_check.h"
#include "loader/workspace_config.h"
#include "treadle/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using treadle::fuzz::require;
  treadle::model::ModelSpec spec;
  spec.num_layers = 2;
  spec.intermediate_size = 96;
  spec.num_heads = 4;
  spec.num_kv_heads = 2;
  spec.head_dim = 16;
  spec.vocab_size = 32;
  spec.max_position_embeddings = 256;
  spec.rope.rotary_dim = 16;
  try {
    const treadle::loader::WorkspaceConfig config = treadle::loader::parse_workspace_config(
        {reinterpret_cast<const char*>(data), size}, treadle::ops::DType::kF16, spec);
    require(config.session_len >= 0 && config.session_len <= 1 << 24);
    require(config.max_batch_size >= 0 && config.max_batch_size <= 4096);
    require(config.max_prefill_token_num >= 0 && config.max_prefill_token_num <= 1 << 20);
    require(config.cache_max_entry_count >= 0.0 && config.cache_max_entry_count <= 1e8);
    require(config.quant_policy == 0 || config.quant_policy == 8);
    require(config.rope_scaling_factor == 0.0 ||
            (config.rope_scaling_factor >= 1.0 && config.rope_scaling_factor <= 1e6));
    require(config.use_logn_attn >= -1 && config.use_logn_attn <= 1);
    require(spec.bos_token_id >= -1 && spec.bos_token_id < spec.vocab_size);
    for (const int32_t id : spec.eos_token_ids) require(id >= 0 && id < spec.vocab_size);
  } catch (const treadle::Error& error) {
    treadle::fuzz::check_message(error, "config.ini: ");
  }
  return 0;
}
