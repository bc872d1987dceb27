// A workspace's config.ini: LMDeploy's keys.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/model_spec.h"
#include "ops/types.h"

namespace treadle::loader {

/// What it asks of the engine. Options of EngineConfig that were given have the last word.
struct WorkspaceConfig {
  std::string model_name;              // of a built-in chat format; empty = none
  int32_t session_len = 0;             // 0 = the model's maximum
  int32_t max_batch_size = 0;          // 0 = automatic
  int32_t max_prefill_token_num = 0;   // 0 = automatic
  double cache_max_entry_count = 0.0;  // 0 = automatic
  int32_t quant_policy = 0;            // 0 or 8; the file may say 4 for 8, as LMDeploy once did
  double rope_scaling_factor = 0.0;    // 0 = as the model says
  int32_t use_logn_attn = -1;          // -1 as the model says, 0 off, 1 on
  std::vector<std::string> ignored;    // keys of LMDeploy's that were given and mean nothing here
};

/// Reads the file's text. Sizes and the like must be those of `spec` (the model's own files, which
/// the weights fit) and of `stored`, the type of its projections; start_id and end_id replace the
/// spec's. Throws Error(kInvalidModel) that names line, key, value and what would be right, for an
/// unknown key too; kUnsupported for tensor_para_size above 1.
WorkspaceConfig parse_workspace_config(std::string_view text, ops::DType stored,
                                       model::ModelSpec& spec);

/// The text of a new one. Throws Error(kInvalidArgument) for settings that no file may hold.
std::string workspace_config_text(const model::ModelSpec& spec, ops::DType stored,
                                  const WorkspaceConfig& settings);

}  // namespace treadle::loader
