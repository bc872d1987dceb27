#include "loader/config_common.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "loader/text.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;

// Far above any model known, low enough that no product of two of them overflows int64_t.
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHeads = 1024;
constexpr int32_t kMaxHeadDim = 256;  // what the attention kernels hold in registers
constexpr int32_t kMaxHidden = 1 << 17;
constexpr int32_t kMaxIntermediate = 1 << 20;
constexpr int32_t kMaxVocab = 1 << 24;
constexpr int32_t kMaxLength = 1 << 30;

// Fields of related families that change what is computed. They are harmless when off.
constexpr std::array kMustBeOff = {"num_local_experts",
                                   "num_experts",
                                   "n_routed_experts",
                                   "attn_logit_softcapping",
                                   "attn_logit_soft_cap",
                                   "final_logit_softcapping",
                                   "final_logit_soft_cap",
                                   "router_logit_softcap",
                                   "query_pre_attn_scalar",
                                   "attention_multiplier",
                                   "alibi",
                                   "use_alibi",
                                   "parallel_attn",
                                   "parallel_residual",
                                   "use_parallel_residual",
                                   "use_qk_norm",
                                   "qk_layernorm",
                                   "qk_layer_norm",
                                   "clip_qkv",
                                   "attention_chunk_size",
                                   "no_rope_layers",
                                   "no_rope_layer_interval",
                                   "use_dynamic_ntk",
                                   "attn_temperature_tuning",
                                   "kv_lora_rank",
                                   "q_lora_rank",
                                   "use_mup",
                                   "dim_model_base",
                                   "is_encoder_decoder",
                                   "add_cross_attention",
                                   "pruned_heads",
                                   "mtp_only",
                                   "use_attention_sinks",
                                   "use_mrope"};
constexpr std::array kMustBeOne = {"logits_scaling",      "logit_scale",     "embedding_multiplier",
                                   "residual_multiplier", "scale_emb",       "scale_depth",
                                   "lm_head_multiplier",  "embedding_scale", "mup_scale"};

bool is_off(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0.0;
  return (value.is_object() || value.is_array()) && value.empty();
}

ops::DType read_dtype(const Fields& config) {
  const std::string older = config.string("torch_dtype", "");
  const std::string newer = config.string("dtype", "");
  if (!older.empty() && !newer.empty() && older != newer) {
    config.fail("dtype", "contradicts torch_dtype, " + quote(older));
  }
  const char* field = newer.empty() ? "torch_dtype" : "dtype";
  std::string name = newer.empty() ? older : newer;
  if (name.starts_with("torch.")) name = name.substr(6);
  if (name.empty() || name == "float32" || name == "float") return ops::DType::kF32;
  if (name == "float16" || name == "half") return ops::DType::kF16;
  if (name == "bfloat16") return ops::DType::kBF16;
  config.unsupported(field, "must be float32, float16 or bfloat16");
}

void read_heads(const Fields& config, const FamilyDefaults& defaults, ModelSpec& spec) {
  spec.num_heads = config.integer("num_attention_heads", {}, 1, kMaxHeads);
  // Absent: the class's default. Null: as many as there are heads.
  const bool absent = !config.json().contains("num_key_value_heads");
  const int32_t kv_heads =
      absent && defaults.num_kv_heads > 0 ? defaults.num_kv_heads : spec.num_heads;
  spec.num_kv_heads = config.integer("num_key_value_heads", kv_heads, 1, kMaxHeads);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    fail_model(config.file(),
               cat("num_attention_heads is ", spec.num_heads,
                   ": must be a multiple of num_key_value_heads, ", spec.num_kv_heads));
  }
  const bool head_dim_absent = !config.json().contains("head_dim");
  if (config.has("head_dim") || (head_dim_absent && defaults.head_dim > 0)) {
    spec.head_dim = config.integer("head_dim", defaults.head_dim, 1, kMaxHeadDim);
  } else if (spec.hidden_size % spec.num_heads != 0) {
    fail_model(config.file(), cat("hidden_size is ", spec.hidden_size,
                                  ": must be a multiple of num_attention_heads, ", spec.num_heads,
                                  ", when head_dim is not given"));
  } else {
    spec.head_dim = spec.hidden_size / spec.num_heads;
  }
  if (spec.head_dim % 2 != 0 || spec.head_dim > kMaxHeadDim) {
    fail_model(config.file(),
               cat("head_dim is ", spec.head_dim, ": must be even and at most ", kMaxHeadDim));
  }
}

}  // namespace

void refuse_unsupported(const Fields& config) {
  for (const char* key : kMustBeOff) {
    const Json* value = config.find(key);
    if (value != nullptr && !is_off(*value)) {
      config.unsupported(key, "this changes results and is not implemented");
    }
  }
  for (const char* key : kMustBeOne) {
    const Json* value = config.find(key);
    if (value != nullptr && !(value->is_number() && value->get<double>() == 1.0)) {
      config.unsupported(key, "this changes results and is not implemented");
    }
  }
  const std::string activation = config.string("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.unsupported("hidden_act", "only \"silu\" is implemented");
  }
}

void read_common(const Fields& config, const FamilyDefaults& defaults, ModelSpec& spec) {
  spec.num_layers = config.integer("num_hidden_layers", {}, 1, kMaxLayers);
  spec.hidden_size = config.integer("hidden_size", {}, 1, kMaxHidden);
  spec.intermediate_size = config.integer("intermediate_size", {}, 1, kMaxIntermediate);
  spec.vocab_size = config.integer("vocab_size", {}, 1, kMaxVocab);
  spec.max_position_embeddings =
      config.integer("max_position_embeddings", defaults.max_position_embeddings, 1, kMaxLength);
  read_heads(config, defaults, spec);
  spec.norm_eps = static_cast<float>(config.number("rms_norm_eps", defaults.norm_eps, 0.0, 1.0));
  spec.tied_embeddings = config.boolean("tie_word_embeddings", false);
  spec.weight_dtype = read_dtype(config);
  spec.bos_token_id = config.integer("bos_token_id", -1, -1, spec.vocab_size - 1);
  if (config.boolean("use_logn_attn", false)) {
    spec.logn_len = config.integer("seq_length", spec.max_position_embeddings, 2, kMaxLength);
  }
  spec.layer_uses_window.assign(static_cast<size_t>(spec.num_layers), 0);
}

void read_eos(const Fields& fields, ModelSpec& spec) {
  for (const int32_t id : fields.integers("eos_token_id", -1, spec.vocab_size - 1)) {
    auto& ids = spec.eos_token_ids;
    // -1 is how some configurations write "none".
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
}

void read_window(const Fields& config, int32_t window, int32_t first_layer, ModelSpec& spec) {
  const std::vector<std::string> types = config.strings("layer_types");
  if (!types.empty() && types.size() != spec.layer_uses_window.size()) {
    config.fail("layer_types",
                cat("has ", types.size(), " entries, but num_hidden_layers is ", spec.num_layers));
  }
  for (int32_t i = 0; i < spec.num_layers; ++i) {
    const auto layer = static_cast<size_t>(i);
    bool uses = window > 0 && i >= first_layer;
    if (!types.empty()) {
      uses = types[layer] == "sliding_attention";
      if (!uses && types[layer] != "full_attention") {
        config.unsupported("layer_types", quote(types[layer]) +
                                              " is not one of "
                                              "\"full_attention\" and \"sliding_attention\"");
      }
      if (uses && window == 0) {
        config.fail("layer_types", "names sliding_attention, but the model has no sliding_window");
      }
    }
    spec.layer_uses_window[layer] = uses ? 1 : 0;
    if (uses) spec.sliding_window = window;
  }
}

}  // namespace treadle::loader
