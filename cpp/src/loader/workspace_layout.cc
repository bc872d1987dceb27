#include "loader/workspace_layout.h"

#include <filesystem>

#include "loader/text.h"

namespace treadle::loader {

bool is_workspace(const std::string& directory) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::path(directory) / kWorkspaceConfig, error);
}

std::string rank_directory(const std::string& workspace, int rank) {
  return (std::filesystem::path(workspace) / "weights" / cat("rank", rank)).string();
}

LinearName workspace_linear(const model::ModelSpec& spec, LinearPart part, size_t layer) {
  const int64_t hidden = spec.hidden_size;
  const int64_t inter = spec.intermediate_size;
  const std::string prefix = cat("layers.", layer, ".");
  switch (part) {
    case LinearPart::kQkv:
      return {prefix + "qkv", spec.qkv_features(), hidden, spec.qkv_bias};
    case LinearPart::kO:
      return {prefix + "o", hidden, int64_t{spec.num_heads} * spec.head_dim, spec.o_bias};
    case LinearPart::kGateUp:
      return {prefix + "gate_up", 2 * inter, hidden, spec.mlp_bias};
    case LinearPart::kDown:
      return {prefix + "down", hidden, inter, spec.mlp_bias};
    case LinearPart::kHead:
      break;
  }
  return {"head", spec.vocab_size, hidden, false};
}

std::string workspace_norm(NormPart part, size_t layer) {
  const std::string prefix = cat("layers.", layer, ".");
  switch (part) {
    case NormPart::kAttn:
      return prefix + "attn_norm";
    case NormPart::kMlp:
      return prefix + "mlp_norm";
    case NormPart::kQ:
      return prefix + "q_norm";
    case NormPart::kK:
      return prefix + "k_norm";
    case NormPart::kFinal:
      break;
  }
  return "final_norm";
}

std::vector<LinearPart> layer_linears() {
  return {LinearPart::kQkv, LinearPart::kO, LinearPart::kGateUp, LinearPart::kDown};
}

std::vector<NormPart> layer_norms(const model::ModelSpec& spec) {
  std::vector<NormPart> parts = {NormPart::kAttn, NormPart::kMlp};
  if (spec.qk_norm) {
    parts.push_back(NormPart::kQ);
    parts.push_back(NormPart::kK);
  }
  return parts;
}

bool is_padding(const std::string& name) { return name.starts_with("_pad."); }

}  // namespace treadle::loader
