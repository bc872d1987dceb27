#include "loader/families.h"

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "loader/config_common.h"
#include "loader/rope_config.h"
#include "loader/text.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;

constexpr int32_t kMaxWindow = std::numeric_limits<int32_t>::max() / 2;
constexpr int32_t kNever = std::numeric_limits<int32_t>::max();

// Llama 1, 2 and 3, Yi, Vicuna.
void read_llama(const Fields& config, ModelSpec& spec) {
  read_common(config, {}, spec);
  read_rope(config, spec);
  spec.qkv_bias = spec.o_bias = config.boolean("attention_bias", false);
  spec.mlp_bias = config.boolean("mlp_bias", false);
  read_window(config, 0, kNever, spec);
}

void read_mistral(const Fields& config, ModelSpec& spec) {
  read_common(config, {.max_position_embeddings = 4096 * 32, .num_kv_heads = 8}, spec);
  read_rope(config, spec);
  // Absent means 4096, null means none.
  const bool absent = !config.json().contains("sliding_window");
  const int32_t window = config.integer("sliding_window", absent ? 4096 : 0, 1, kMaxWindow);
  read_window(config, window, 0, spec);
}

void read_qwen_window(const Fields& config, ModelSpec& spec) {
  int32_t window = 0;
  if (config.boolean("use_sliding_window", false)) {
    const bool absent = !config.json().contains("sliding_window");
    window = config.integer("sliding_window", absent ? 4096 : 0, 1, kMaxWindow);
  }
  read_window(config, window, config.integer("max_window_layers", 28, 0, kMaxWindow), spec);
}

void read_qwen2(const Fields& config, ModelSpec& spec) {
  read_common(config, {.max_position_embeddings = 32768, .num_kv_heads = 32}, spec);
  read_rope(config, spec);
  spec.qkv_bias = true;
  read_qwen_window(config, spec);
}

void read_qwen3(const Fields& config, ModelSpec& spec) {
  read_common(config, {.max_position_embeddings = 32768, .num_kv_heads = 32, .head_dim = 128},
              spec);
  read_rope(config, spec);
  spec.qkv_bias = spec.o_bias = config.boolean("attention_bias", false);
  spec.qk_norm = true;
  read_qwen_window(config, spec);
}

void read_internlm(const Fields& config, ModelSpec& spec) {
  read_common(config, {}, spec);
  read_internlm_rope(config, spec);
  spec.qkv_bias = spec.o_bias = config.boolean("bias", true);
}

void read_internlm2(const Fields& config, ModelSpec& spec) {
  read_common(config, {}, spec);
  read_rope(config, spec);
  spec.qkv_bias = spec.o_bias = config.boolean("bias", true);
  spec.fused_wqkv = true;
}

// One setting under its own name or the one transformers gives it.
bool either(const Fields& config, const char* name, const char* alias) {
  const bool value = config.boolean(name, config.boolean(alias, false));
  if (config.has(alias) && config.boolean(alias, false) != value) {
    config.fail(alias, cat("contradicts ", name));
  }
  return value;
}

void read_internlm3(const Fields& config, ModelSpec& spec) {
  read_common(
      config,
      {.max_position_embeddings = 32768, .num_kv_heads = 2, .head_dim = 128, .norm_eps = 1e-5},
      spec);
  read_rope(config, spec);
  spec.qkv_bias = either(config, "qkv_bias", "attention_bias");
  spec.o_bias = spec.mlp_bias = either(config, "bias", "mlp_bias");
}

constexpr std::array<Family, 7> kFamilies = {{
    {"LlamaForCausalLM", "llama", "llama", read_llama},
    {"MistralForCausalLM", "mistral", "mistral", read_mistral},
    {"Qwen2ForCausalLM", "qwen2", "qwen2", read_qwen2},
    {"Qwen3ForCausalLM", "qwen3", "qwen3", read_qwen3},
    {"InternLMForCausalLM", "internlm", "internlm", read_internlm},
    {"InternLM2ForCausalLM", "internlm2", "internlm2", read_internlm2},
    {"InternLM3ForCausalLM", "internlm3", "internlm3", read_internlm3, "LlamaForCausalLM"},
}};

std::string known_architectures() {
  std::string out;
  for (const Family& family : kFamilies) {
    out += (out.empty() ? "" : ", ") + std::string(family.architecture);
  }
  return out;
}

const Family* by_model_type(const std::string& type) {
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return &family;
  }
  return nullptr;
}

}  // namespace

std::span<const Family> families() { return kFamilies; }

const Family& find_family(const Fields& config) {
  const std::vector<std::string> names = config.strings("architectures");
  const std::string type = config.string("model_type", "");
  const Family* typed = by_model_type(type);
  if (names.empty()) {
    if (typed != nullptr) return *typed;
    if (!type.empty()) {
      config.unsupported("model_type", "this version knows " + known_architectures());
    }
    config.fail("architectures", "must name the model's class, one of " + known_architectures());
  }
  // The spelling of the first Llama conversions.
  const std::string& name = names[0] == "LLaMAForCausalLM" ? kFamilies[0].architecture : names[0];
  if (typed != nullptr && name == typed->also) return *typed;
  for (const Family& family : kFamilies) {
    if (name != family.architecture) continue;
    if (typed != nullptr && typed != &family) {
      config.fail("model_type", "contradicts architectures, " + quote(name));
    }
    return family;
  }
  config.unsupported("architectures", "unknown architecture " + quote(names[0]) +
                                          "; this version knows " + known_architectures());
}

}  // namespace treadle::loader
