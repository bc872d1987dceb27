#include "loader/workspace_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "loader/ini.h"
#include "loader/text.h"
#include "loader/workspace_layout.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;

// LMDeploy's name of the section, whatever the model's family.
constexpr const char* kSection = "llama";
constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
constexpr int32_t kMaxSessionLen = 1 << 24;  // as EngineConfig's

// Keys of LMDeploy's whose meaning lies in its own memory management and scheduling, or which
// repeat what config.json says.
constexpr std::array kIgnored = {"model_arch",
                                 "max_context_token_num",
                                 "step_length",
                                 "cache_block_seq_len",
                                 "cache_chunk_size",
                                 "enable_prefix_caching",
                                 "num_tokens_per_iter",
                                 "max_prefill_iters",
                                 "extra_tokens_per_iter",
                                 "use_context_fmha",
                                 "rope_scaling_type",
                                 "original_max_position_embeddings",
                                 "low_freq_factor",
                                 "high_freq_factor",
                                 "attention_factor",
                                 "beta_fast",
                                 "beta_slow",
                                 "lora_policy",
                                 "lora_scale",
                                 "lora_max_wo_r",
                                 "lora_rank_pattern",
                                 "lora_scale_pattern"};

// They would change results.
constexpr std::array kMustBeOff = {"use_dynamic_ntk", "lora_r"};

std::string number_text(double value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

std::string number_text(float value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

bool near(double a, double b) { return std::fabs(a - b) <= 1e-6 * std::fabs(b); }

bool int4(const ModelSpec& spec) { return spec.quant.method != model::QuantMethod::kNone; }

std::string weight_type(const ModelSpec& spec, ops::DType stored) {
  if (int4(spec)) return "int4";
  return stored == ops::DType::kF16 ? "fp16" : stored == ops::DType::kBF16 ? "bf16" : "fp32";
}

// LMDeploy's newer spelling.
std::string short_type(const std::string& type) {
  if (type == "float16") return "fp16";
  if (type == "bfloat16") return "bf16";
  if (type == "float32") return "fp32";
  return type;
}

size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t corner = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t best = std::min({row[j] + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1])});
      corner = row[j];
      row[j] = best;
    }
  }
  return row[b.size()];
}

class Reader {
 public:
  Reader(ops::DType stored, ModelSpec& spec) : stored_(stored), spec_(spec) {
    facts();
    options();
    for (const char* key : kIgnored) {
      actions_[key] = [this, key](const IniEntry&) { config_.ignored.emplace_back(key); };
    }
    for (const char* key : kMustBeOff) {
      actions_[key] = [this](const IniEntry& entry) {
        const bool off = entry.value.empty() || entry.value == "0" || entry.value == "False";
        if (!off) values_.fail(entry, "this changes results and is not implemented");
      };
    }
  }

  WorkspaceConfig read(std::string_view text) {
    for (const IniEntry& entry : parse_ini(text, kSection, kWorkspaceConfig)) {
      const auto action = actions_.find(entry.key);
      if (action == actions_.end()) refuse_unknown(entry);
      action->second(entry);
    }
    return config_;
  }

 private:
  // What the weights decide.
  void facts() {
    size("head_num", spec_.num_heads);
    size("kv_head_num", spec_.num_kv_heads);
    size("vocab_size", spec_.vocab_size);
    size("num_layer", spec_.num_layers);
    size("inter_size", spec_.intermediate_size);
    size("size_per_head", spec_.head_dim);
    size("rotary_embedding", spec_.rope.rotary_dim);
    size("max_position_embeddings", spec_.max_position_embeddings);
    fact("norm_eps", spec_.norm_eps, number_text(spec_.norm_eps));
    fact("rope_theta", spec_.rope.base, number_text(spec_.rope.base));
    actions_["attn_bias"] = [this](const IniEntry& entry) {
      require(entry, values_.flag(entry) == spec_.qkv_bias, spec_.qkv_bias ? "1" : "0");
    };
    actions_["weight_type"] = [this](const IniEntry& entry) {
      const std::string type = weight_type(spec_, stored_);
      require(entry, short_type(entry.value) == type, type);
    };
    actions_["group_size"] = [this](const IniEntry& entry) {
      const int32_t size = values_.integer(entry, -1, kMax);
      // Without 4-bit weights LMDeploy writes 0 or 128.
      if (!int4(spec_)) return;
      require(entry, std::max(size, 0) == spec_.quant.group_size,
              std::to_string(spec_.quant.group_size));
    };
    actions_["tensor_para_size"] = [this](const IniEntry& entry) {
      if (values_.integer(entry, 1, 1024) != 1) {
        fail_unsupported(kWorkspaceConfig, cat("line ", entry.line, ": tensor_para_size is ",
                                               entry.value, ": only 1 in this version"));
      }
    };
  }

  // What may be edited. The ranges are those of EngineConfig.
  void options() {
    actions_["model_name"] = [this](const IniEntry& entry) { config_.model_name = entry.value; };
    integer("session_len", config_.session_len, kMaxSessionLen);
    integer("max_batch_size", config_.max_batch_size, 4096);
    integer("max_prefill_token_num", config_.max_prefill_token_num, 1 << 20);
    actions_["cache_max_entry_count"] = [this](const IniEntry& entry) {
      const double value = values_.number(entry, 0.0, 1e8);
      if (value > 1.0 && value != std::floor(value)) {
        values_.fail(entry,
                     "must be a fraction in (0, 1] of the free memory or a whole number of "
                     "blocks");
      }
      config_.cache_max_entry_count = value;
    };
    actions_["quant_policy"] = [this](const IniEntry& entry) {
      const int32_t value = values_.integer(entry, 0, kMax);
      if (value != 0 && value != 4 && value != 8) {
        values_.fail(entry, "must be 0 (none) or 8 (int8 KV; 4 is its older spelling)");
      }
      config_.quant_policy = value == 0 ? 0 : 8;
    };
    actions_["rope_scaling_factor"] = [this](const IniEntry& entry) {
      const double value = values_.number(entry, 0.0, 1e6);
      if (value > 0.0 && value < 1.0) values_.fail(entry, "must be 0 (off) or from 1 to 1e6");
      config_.rope_scaling_factor = value;
    };
    actions_["use_logn_attn"] = [this](const IniEntry& entry) {
      config_.use_logn_attn = values_.flag(entry) ? 1 : 0;
    };
    actions_["start_id"] = [this](const IniEntry& entry) {
      spec_.bos_token_id = values_.integer(entry, -1, spec_.vocab_size - 1);
    };
    actions_["end_id"] = [this](const IniEntry& entry) {
      spec_.eos_token_ids.clear();
      for (const int32_t id : values_.integers(entry, -1, spec_.vocab_size - 1)) {
        if (id >= 0) spec_.eos_token_ids.push_back(id);
      }
    };
  }

  void size(const char* key, int32_t right) {
    actions_[key] = [this, right](const IniEntry& entry) {
      require(entry, values_.integer(entry, 0, kMax) == right, std::to_string(right));
    };
  }

  void fact(const char* key, double right, const std::string& text) {
    actions_[key] = [this, right, text](const IniEntry& entry) {
      require(entry, near(values_.number(entry, 0.0, 1e300), right), text);
    };
  }

  void integer(const char* key, int32_t& option, int32_t max) {
    actions_[key] = [this, &option, max](const IniEntry& entry) {
      option = values_.integer(entry, 0, max);
    };
  }

  void require(const IniEntry& entry, bool right, const std::string& theirs) const {
    if (!right) values_.fail(entry, cat("the weights have ", theirs, ", which cannot be edited"));
  }

  [[noreturn]] void refuse_unknown(const IniEntry& entry) const {
    std::string closest;
    size_t least = 1 + entry.key.size() / 2;
    // Keys are short; a hostile one is not worth comparing.
    if (entry.key.size() <= 64) {
      for (const auto& [known, action] : actions_) {
        const size_t changes = distance(entry.key, known);
        if (changes < least) {
          closest = known;
          least = changes;
        }
      }
    }
    const std::string hint = closest.empty() ? "" : cat(": did you mean ", closest, "?");
    fail_model(kWorkspaceConfig,
               cat("line ", entry.line, ": unknown key ", quote(entry.key), hint));
  }

  const ops::DType stored_;
  ModelSpec& spec_;
  const IniValues values_{kWorkspaceConfig};
  WorkspaceConfig config_;
  std::map<std::string, std::function<void(const IniEntry&)>> actions_;
};

constexpr const char* kHeading =
    "; A Treadle workspace, made by `treadle convert`.\n"
    "; To be edited: session_len, max_batch_size (0: automatic), quant_policy (8: int8 KV, 0: "
    "none),\n"
    "; rope_scaling_factor (0: as the model says), use_logn_attn, start_id, end_id (several:\n"
    "; separated by commas), and model_name, a built-in chat format for models without a "
    "template.\n"
    "; The other keys say what the weights are.\n";

}  // namespace

WorkspaceConfig parse_workspace_config(std::string_view text, ops::DType stored, ModelSpec& spec) {
  return Reader(stored, spec).read(text);
}

std::string workspace_config_text(const ModelSpec& spec, ops::DType stored,
                                  const WorkspaceConfig& settings) {
  std::string out = cat(kHeading, "[", kSection, "]\n");
  const auto put = [&out](const char* key, const auto& value) {
    out += cat(key, " = ", value, "\n");
  };
  // 0 = the model's own, which may be beyond what can be asked for.
  const bool own = settings.session_len == 0 && spec.max_position_embeddings <= kMaxSessionLen;
  const int32_t session_len = own ? spec.max_position_embeddings : settings.session_len;
  const int logn = settings.use_logn_attn >= 0 ? settings.use_logn_attn : int{spec.logn_len > 0};
  put("model_name", settings.model_name.empty() ? "base" : settings.model_name);
  put("tensor_para_size", 1);
  put("head_num", spec.num_heads);
  put("kv_head_num", spec.num_kv_heads);
  put("vocab_size", spec.vocab_size);
  put("num_layer", spec.num_layers);
  put("inter_size", spec.intermediate_size);
  put("norm_eps", number_text(spec.norm_eps));
  put("attn_bias", int{spec.qkv_bias});
  if (spec.bos_token_id >= 0) put("start_id", spec.bos_token_id);
  if (!spec.eos_token_ids.empty()) {
    std::string ids;
    for (const int32_t id : spec.eos_token_ids)
      ids += (ids.empty() ? "" : ", ") + std::to_string(id);
    put("end_id", ids);
  }
  put("session_len", session_len);
  put("weight_type", weight_type(spec, stored));
  put("rotary_embedding", spec.rope.rotary_dim);
  put("rope_theta", number_text(spec.rope.base));
  put("size_per_head", spec.head_dim);
  put("group_size", int4(spec) && spec.quant.group_size == 0 ? -1 : spec.quant.group_size);
  put("max_batch_size", settings.max_batch_size);
  put("max_position_embeddings", spec.max_position_embeddings);
  put("quant_policy", settings.quant_policy);
  put("rope_scaling_factor", number_text(settings.rope_scaling_factor));
  put("use_logn_attn", logn);
  if (settings.cache_max_entry_count > 0.0) {
    put("cache_max_entry_count", number_text(settings.cache_max_entry_count));
  }
  if (settings.max_prefill_token_num > 0) {
    put("max_prefill_token_num", settings.max_prefill_token_num);
  }
  // What is written can be read.
  try {
    ModelSpec same = spec;
    const WorkspaceConfig back = parse_workspace_config(out, stored, same);
    if (back.model_name == settings.model_name || settings.model_name.empty()) return out;
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidArgument, error.what());
  }
  throw Error(ErrorCode::kInvalidArgument,
              cat("model_name is ", quote(settings.model_name), ": must be one line of text"));
}

}  // namespace treadle::loader
