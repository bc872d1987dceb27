#include "engine/prepare.h"

#include <utility>

#include "loader/loader.h"
#include "model/model_options.h"

namespace treadle {
namespace {

/// Options that were given have the last word.
void fill_from(const loader::WorkspaceConfig& from, EngineConfig& config) {
  const auto fill = [](auto& option, auto open, auto value) {
    if (option == open) option = value;
  };
  fill(config.session_len, 0, from.session_len);
  fill(config.max_batch_size, 0, from.max_batch_size);
  fill(config.max_prefill_token_num, 0, from.max_prefill_token_num);
  fill(config.cache_max_entry_count, 0.0, from.cache_max_entry_count);
  fill(config.quant_policy, -1, from.quant_policy);
  fill(config.rope_scaling_factor, 0.0, from.rope_scaling_factor);
  fill(config.use_logn_attn, -1, from.use_logn_attn);
}

}  // namespace

Prepared prepare(const std::string& path, const EngineConfig& config) {
  loader::ModelFiles files = loader::read_model(path);
  Prepared out{
      .spec = std::move(files.spec), .config = config, .model_name = {}, .ignored_keys = {}};
  if (files.workspace) {
    fill_from(*files.workspace, out.config);
    out.model_name = files.workspace->model_name;
    for (const std::string& key : files.workspace->ignored) {
      out.ignored_keys += (out.ignored_keys.empty() ? "" : ", ") + key;
    }
  }
  if (out.config.quant_policy == -1) out.config.quant_policy = 0;
  model::apply_options(out.spec, out.config.rope_scaling_factor, out.config.use_logn_attn);
  return out;
}

}  // namespace treadle
