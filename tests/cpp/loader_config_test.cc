// What a config.json means, for every family, and what is refused.
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "loader/config.h"
#include "loader/json.h"
#include "loader/loader.h"
#include "loader_testing.h"
#include "model/model_options.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using model::RopeKind;
using testing::expect_error;

// A small valid configuration of this architecture, with `patch` merged over it: a null member
// stays null, `remove` names are taken out.
std::string config(const std::string& architecture, const std::string& patch = "{}",
                   const std::vector<std::string>& remove = {}) {
  Json json = Json::parse(R"({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
      "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
      "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
      "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2})");
  json["architectures"] = {architecture};
  json.update(Json::parse(patch));
  for (const std::string& key : remove) json.erase(key);
  return json.dump();
}

ModelSpec spec_of(const std::string& architecture, const std::string& patch = "{}",
                  const std::vector<std::string>& remove = {}) {
  return parse_spec(config(architecture, patch, remove), {});
}

void refused(ErrorCode code, const std::vector<std::string>& parts, const std::string& patch,
             const std::string& architecture = "LlamaForCausalLM",
             const std::vector<std::string>& remove = {}) {
  SCOPED_TRACE(patch);
  std::vector<std::string> all = {"config.json: "};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_error(code, all, [&] { spec_of(architecture, patch, remove); });
}

void invalid(const std::vector<std::string>& parts, const std::string& patch) {
  refused(ErrorCode::kInvalidModel, parts, patch);
}

void unsupported(const std::vector<std::string>& parts, const std::string& patch) {
  refused(ErrorCode::kUnsupported, parts, patch);
}

TEST(Config, ReadsLlama) {
  const ModelSpec spec = spec_of("LlamaForCausalLM");
  EXPECT_EQ(spec.architecture, "LlamaForCausalLM");
  EXPECT_EQ(spec.family, "llama");
  EXPECT_EQ(spec.num_layers, 4);
  EXPECT_EQ(spec.hidden_size, 64);
  EXPECT_EQ(spec.intermediate_size, 128);
  EXPECT_EQ(spec.num_heads, 4);
  EXPECT_EQ(spec.num_kv_heads, 2);
  EXPECT_EQ(spec.head_dim, 16);
  EXPECT_EQ(spec.vocab_size, 100);
  EXPECT_EQ(spec.max_position_embeddings, 512);
  EXPECT_EQ(spec.norm_eps, 1e-5F);
  EXPECT_EQ(spec.weight_dtype, ops::DType::kBF16);
  EXPECT_EQ(spec.bos_token_id, 1);
  EXPECT_EQ(spec.eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_EQ(spec.rope.kind, RopeKind::kDefault);
  EXPECT_EQ(spec.rope.base, 10000.0);
  EXPECT_EQ(spec.rope.rotary_dim, 16);
  EXPECT_FALSE(spec.qkv_bias || spec.o_bias || spec.mlp_bias || spec.qk_norm ||
               spec.tied_embeddings || spec.fused_wqkv);
  EXPECT_EQ(spec.logn_len, 0);
  EXPECT_EQ(spec.sliding_window, 0);
  EXPECT_EQ(spec.layer_uses_window, (std::vector<uint8_t>{0, 0, 0, 0}));
}

TEST(Config, ReadsLlamaVariants) {
  const ModelSpec spec = spec_of(
      "LlamaForCausalLM",
      R"({"attention_bias": true, "mlp_bias": true, "head_dim": 32, "tie_word_embeddings": true,
          "num_key_value_heads": null, "sliding_window": 7, "dtype": "float16",
          "torch_dtype": null, "use_logn_attn": true})");
  EXPECT_TRUE(spec.qkv_bias && spec.o_bias && spec.mlp_bias && spec.tied_embeddings);
  EXPECT_EQ(spec.head_dim, 32);
  EXPECT_EQ(spec.num_kv_heads, 4);
  EXPECT_EQ(spec.weight_dtype, ops::DType::kF16);
  EXPECT_EQ(spec.sliding_window, 0);  // Llama has none, whatever else the file says
  EXPECT_EQ(spec.logn_len, 512);
  EXPECT_EQ(spec_of("LlamaForCausalLM", R"({"use_logn_attn": true, "seq_length": 64})").logn_len,
            64);
  EXPECT_EQ(spec_of("LLaMAForCausalLM").family, "llama");
  EXPECT_EQ(spec_of("", R"({"model_type": "llama"})", {"architectures"}).family, "llama");
  EXPECT_EQ(spec_of("LlamaForCausalLM", "{}", {"torch_dtype"}).weight_dtype, ops::DType::kF32);
  EXPECT_EQ(spec_of("LlamaForCausalLM", R"({"torch_dtype": "torch.float16"})").weight_dtype,
            ops::DType::kF16);
  EXPECT_EQ(spec_of("LlamaForCausalLM", "{}", {"num_key_value_heads"}).num_kv_heads, 4);
}

TEST(Config, ReadsMistral) {
  const ModelSpec spec = spec_of("MistralForCausalLM", R"({"sliding_window": 32})");
  EXPECT_EQ(spec.family, "mistral");
  EXPECT_EQ(spec.sliding_window, 32);
  EXPECT_EQ(spec.layer_uses_window, (std::vector<uint8_t>{1, 1, 1, 1}));
  EXPECT_EQ(spec_of("MistralForCausalLM", R"({"sliding_window": null})").sliding_window, 0);
  EXPECT_EQ(spec_of("MistralForCausalLM").sliding_window, 4096);
  EXPECT_EQ(spec_of("MistralForCausalLM", R"({"num_attention_heads": 16})", {"num_key_value_heads"})
                .num_kv_heads,
            8);
}

TEST(Config, ReadsQwen2) {
  const std::string name = "Qwen2ForCausalLM";
  const ModelSpec spec = spec_of(name, R"({"sliding_window": 32, "max_window_layers": 1})");
  EXPECT_EQ(spec.family, "qwen2");
  EXPECT_TRUE(spec.qkv_bias);
  EXPECT_FALSE(spec.o_bias || spec.mlp_bias || spec.qk_norm);
  EXPECT_EQ(spec.sliding_window, 0);  // use_sliding_window is off by default
  const ModelSpec window = spec_of(
      name, R"({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 3})");
  EXPECT_EQ(window.sliding_window, 32);
  EXPECT_EQ(window.layer_uses_window, (std::vector<uint8_t>{0, 0, 0, 1}));
  const ModelSpec beyond = spec_of(name, R"({"use_sliding_window": true, "sliding_window": 32})");
  EXPECT_EQ(beyond.sliding_window, 0);  // max_window_layers is 28 by default
  const ModelSpec typed =
      spec_of(name, R"({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 0,
                "layer_types": ["full_attention", "sliding_attention", "full_attention",
                                "sliding_attention"]})");
  EXPECT_EQ(typed.layer_uses_window, (std::vector<uint8_t>{0, 1, 0, 1}));
}

TEST(Config, ReadsQwen3) {
  const ModelSpec spec = spec_of("Qwen3ForCausalLM", R"({"attention_bias": true})");
  EXPECT_EQ(spec.family, "qwen3");
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_TRUE(spec.qk_norm && spec.qkv_bias && spec.o_bias);
  EXPECT_EQ(spec_of("Qwen3ForCausalLM", R"({"head_dim": 64})").head_dim, 64);
  EXPECT_FALSE(spec_of("Qwen3ForCausalLM").qkv_bias);
}

TEST(Config, ReadsInternlm) {
  const ModelSpec spec = spec_of("InternLMForCausalLM");
  EXPECT_EQ(spec.family, "internlm");
  EXPECT_TRUE(spec.qkv_bias && spec.o_bias);
  EXPECT_FALSE(spec.mlp_bias || spec.fused_wqkv);
  EXPECT_EQ(spec.rope.kind, RopeKind::kDynamicNtk);
  EXPECT_EQ(spec.rope.factor, 1.0);
  EXPECT_EQ(spec.rope.original_len, 512);
  const ModelSpec plain = spec_of("InternLMForCausalLM",
                                  R"({"bias": false, "rotary": {"base": 5000, "type": "origin"}})");
  EXPECT_FALSE(plain.qkv_bias || plain.o_bias);
  EXPECT_EQ(plain.rope.kind, RopeKind::kDefault);
  EXPECT_EQ(plain.rope.base, 5000.0);
  const ModelSpec scaled =
      spec_of("InternLMForCausalLM", R"({"rotary": {"type": "dynamic", "scaling_factor": 2.0}})");
  EXPECT_EQ(scaled.rope.factor, 2.0);
  EXPECT_EQ(spec_of("InternLMForCausalLM", R"({"rope_theta": 10000})").rope.kind,
            RopeKind::kDefault);
}

TEST(Config, ReadsInternlm2) {
  const ModelSpec spec = spec_of(
      "InternLM2ForCausalLM",
      R"({"bias": false, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0},
          "model_type": "internlm2"})");
  EXPECT_EQ(spec.family, "internlm2");
  EXPECT_TRUE(spec.fused_wqkv);
  EXPECT_FALSE(spec.qkv_bias || spec.o_bias || spec.mlp_bias);
  EXPECT_EQ(spec.rope.kind, RopeKind::kDynamicNtk);
  EXPECT_EQ(spec.rope.base, 1e6);
  EXPECT_TRUE(spec_of("InternLM2ForCausalLM").qkv_bias);
}

TEST(Config, ReadsInternlm3) {
  const ModelSpec spec = spec_of("InternLM3ForCausalLM", R"({"qkv_bias": true, "head_dim": 16})");
  EXPECT_EQ(spec.family, "internlm3");
  EXPECT_TRUE(spec.qkv_bias);
  EXPECT_FALSE(spec.o_bias || spec.mlp_bias);
  const ModelSpec biased = spec_of("InternLM3ForCausalLM", R"({"bias": true, "head_dim": null})");
  EXPECT_FALSE(biased.qkv_bias);
  EXPECT_TRUE(biased.o_bias && biased.mlp_bias);
  EXPECT_EQ(biased.head_dim, 16);
  EXPECT_EQ(spec_of("InternLM3ForCausalLM").head_dim, 128);
  const ModelSpec renamed =
      spec_of("InternLM3ForCausalLM", R"({"attention_bias": true, "mlp_bias": true})");
  EXPECT_TRUE(renamed.qkv_bias && renamed.o_bias && renamed.mlp_bias);
  // transformers runs this family on its Llama class and says so.
  const ModelSpec saved = spec_of("LlamaForCausalLM", R"({"model_type": "internlm3"})");
  EXPECT_EQ(saved.family, "internlm3");
  EXPECT_EQ(saved.architecture, "LlamaForCausalLM");
  refused(ErrorCode::kInvalidModel, {"attention_bias is false: contradicts qkv_bias"},
          R"({"qkv_bias": true, "attention_bias": false})", "InternLM3ForCausalLM");
}

TEST(Config, ReadsBothSpellingsOfRope) {
  const ModelSpec older = spec_of("LlamaForCausalLM", R"({"rope_theta": 500000.0, "rope_scaling":
      {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
       "original_max_position_embeddings": 128}})");
  const ModelSpec newer = spec_of("LlamaForCausalLM", R"({"rope_parameters": {"rope_theta": 500000,
      "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
      "original_max_position_embeddings": 128}})");
  for (const ModelSpec* spec : {&older, &newer}) {
    EXPECT_EQ(spec->rope.kind, RopeKind::kLlama3);
    EXPECT_EQ(spec->rope.base, 500000.0);
    EXPECT_EQ(spec->rope.factor, 8.0);
    EXPECT_EQ(spec->rope.high_freq_factor, 4.0);
    EXPECT_EQ(spec->rope.original_len, 128);
  }
  const ModelSpec linear =
      spec_of("LlamaForCausalLM", R"({"rope_scaling": {"type": "linear", "factor": 2}})");
  EXPECT_EQ(linear.rope.kind, RopeKind::kLinear);
  EXPECT_EQ(linear.rope.factor, 2.0);
  const ModelSpec dynamic =
      spec_of("LlamaForCausalLM", R"({"rope_scaling": {"type": "dynamic", "factor": 3.0}})");
  EXPECT_EQ(dynamic.rope.kind, RopeKind::kDynamicNtk);
  EXPECT_EQ(dynamic.rope.original_len, 512);
  EXPECT_EQ(spec_of("LlamaForCausalLM", R"({"rope_scaling": null})").rope.kind, RopeKind::kDefault);
  // The value inside the object counts, as in transformers.
  const ModelSpec both = spec_of(
      "LlamaForCausalLM",
      R"({"rope_theta": 1000, "rope_parameters": {"rope_theta": 2000, "rope_type": "default"}})");
  EXPECT_EQ(both.rope.base, 2000.0);
}

TEST(Config, ReadsYarnAndPartialRotation) {
  const ModelSpec spec = spec_of("Qwen2ForCausalLM", R"({"rope_scaling": {"type": "yarn",
      "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": null, "beta_slow": 0,
      "mscale": 0.7, "mscale_all_dim": 1.1, "attention_factor": 1.5, "truncate": false}})");
  EXPECT_EQ(spec.rope.kind, RopeKind::kYarn);
  EXPECT_EQ(spec.rope.factor, 4.0);
  EXPECT_EQ(spec.rope.original_len, 128);
  EXPECT_EQ(spec.rope.beta_fast, 32.0);
  EXPECT_EQ(spec.rope.beta_slow, 1.0);
  EXPECT_EQ(spec.rope.mscale, 0.7);
  EXPECT_EQ(spec.rope.attention_factor, 1.5);
  EXPECT_FALSE(spec.rope.truncate);
  const ModelSpec implied = spec_of("LlamaForCausalLM", R"({"rope_scaling": {"type": "yarn",
      "original_max_position_embeddings": 128}})");
  EXPECT_EQ(implied.rope.factor, 4.0);  // 512 / 128
  EXPECT_EQ(spec_of("LlamaForCausalLM", R"({"partial_rotary_factor": 0.5})").rope.rotary_dim, 8);
}

TEST(Config, GathersEndTokensOfBothFiles) {
  const std::string text = config("LlamaForCausalLM", R"({"eos_token_id": [2, 5]})");
  EXPECT_EQ(parse_spec(text, R"({"eos_token_id": [5, 7]})").eos_token_ids,
            (std::vector<int32_t>{2, 5, 7}));
  EXPECT_EQ(parse_spec(text, R"({"eos_token_id": 9, "top_p": 0.5})").eos_token_ids,
            (std::vector<int32_t>{2, 5, 9}));
  EXPECT_EQ(parse_spec(text, "{}").eos_token_ids, (std::vector<int32_t>{2, 5}));
  expect_error(ErrorCode::kInvalidModel,
               {"generation_config.json: eos_token_id is [100]", "from -1 to 99"},
               [&] { parse_spec(text, R"({"eos_token_id": [100]})"); });
  EXPECT_TRUE(spec_of("LlamaForCausalLM", R"({"eos_token_id": null})").eos_token_ids.empty());
}

TEST(Config, RefusesUnknownArchitecturesByName) {
  refused(ErrorCode::kUnsupported,
          {"architectures", "unknown architecture \"GPT2LMHeadModel\"", "LlamaForCausalLM",
           "InternLM3ForCausalLM"},
          "{}", "GPT2LMHeadModel");
  refused(ErrorCode::kUnsupported, {"model_type is \"gpt2\"", "LlamaForCausalLM"},
          R"({"model_type": "gpt2"})", "", {"architectures"});
  refused(ErrorCode::kInvalidModel, {"architectures is missing", "LlamaForCausalLM"}, "{}", "",
          {"architectures"});
  invalid({"model_type is \"qwen2\"", "contradicts architectures", "LlamaForCausalLM"},
          R"({"model_type": "qwen2"})");
  invalid({"architectures is \"x\": must be a list of strings"}, R"({"architectures": "x"})");
}

TEST(Config, RefusesSizesOutOfRange) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size"}) {
    for (const char* value : {"0", "-1", "1e3", "4.5", "true", "\"64\"", "2147483648",
                              "9223372036854775808", "1000000000", "[64]"}) {
      invalid({std::string(key) + " is ", "must be an integer from 1 to "},
              std::string("{\"") + key + "\": " + value + "}");
    }
    refused(ErrorCode::kInvalidModel, {std::string(key) + " is missing"}, "{}", "LlamaForCausalLM",
            {key});
  }
  invalid({"num_attention_heads is 4: must be a multiple of num_key_value_heads, 3"},
          R"({"num_key_value_heads": 3})");
  invalid({"hidden_size is 66: must be a multiple of num_attention_heads, 4"},
          R"({"hidden_size": 66})");
  invalid({"head_dim is 15: must be even and at most 256"}, R"({"head_dim": 15})");
  invalid({"head_dim is 258: must be an integer from 1 to 256"}, R"({"head_dim": 258})");
  invalid({"head_dim is 512: must be even and at most 256"}, R"({"hidden_size": 2048})");
  invalid({"rms_norm_eps is -1"}, R"({"rms_norm_eps": -1})");
  invalid({"tie_word_embeddings is 1: must be true or false"}, R"({"tie_word_embeddings": 1})");
  invalid({"max_position_embeddings is 0"}, R"({"max_position_embeddings": 0})");
  invalid({"eos_token_id is 100", "from -1 to 99"}, R"({"eos_token_id": 100})");
}

TEST(Config, RefusesWhatWouldChangeResults) {
  unsupported({"hidden_act is \"gelu\"", "silu"}, R"({"hidden_act": "gelu"})");
  unsupported({"quantization_config.quant_method", "\"fp8\"", "\"awq\""},
              R"({"quantization_config": {"quant_method": "fp8"}})");
  unsupported({"quantization_config.bits is 8", "only 4"},
              R"({"quantization_config": {"quant_method": "gptq", "bits": 8}})");
  unsupported({"quantization_config.group_size is 16"},
              R"({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 16}})");
  unsupported({"quantization_config.version is \"gemv\""},
              R"({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}})");
  unsupported({"quantization_config.format is \"int-quantized\""},
              R"({"quantization_config": {"quant_method": "compressed-tensors",
                  "format": "int-quantized"}})");
  unsupported({"weights.actorder is \"group\""},
              R"({"quantization_config": {"quant_method": "compressed-tensors",
                  "format": "pack-quantized", "config_groups": {"group_0": {"weights":
                  {"num_bits": 4, "actorder": "group", "group_size": 128}}}}})");
  unsupported({"quantization_config", "an unnamed method"}, R"({"quantization_config": 4})");
  unsupported({"num_local_experts is 8", "not implemented"}, R"({"num_local_experts": 8})");
  unsupported({"attn_logit_softcapping is 50.0"}, R"({"attn_logit_softcapping": 50.0})");
  unsupported({"logits_scaling is 16"}, R"({"logits_scaling": 16})");
  unsupported({"use_dynamic_ntk is true"}, R"({"use_dynamic_ntk": true})");
  unsupported({"torch_dtype is \"float64\""}, R"({"torch_dtype": "float64"})");
  invalid({"dtype is \"float16\": contradicts torch_dtype, \"bfloat16\""},
          R"({"dtype": "float16"})");
  EXPECT_NO_THROW(spec_of("LlamaForCausalLM", R"({"num_local_experts": 0, "logits_scaling": 1.0,
      "attn_logit_softcapping": null, "use_dynamic_ntk": false, "pruned_heads": {}, "quantization_config": {}})"));
}

TEST(Config, RefusesBadRope) {
  const auto scaling = [](const std::string& fields) {
    return R"({"rope_scaling": )" + fields + "}";
  };
  unsupported({"rope_scaling.type is \"longrope\"", "yarn"},
              scaling(R"({"type": "longrope", "factor": 2})"));
  unsupported({"rope_scaling.rope_type is \"mrope\""}, scaling(R"({"rope_type": "mrope"})"));
  unsupported({"rope_scaling.alpha is 1000.0", "not implemented"},
              scaling(R"({"type": "dynamic", "factor": 1.0, "alpha": 1000.0})"));
  unsupported({"rope_parameters.full_attention"},
              R"({"rope_parameters": {"full_attention": {"rope_type": "default"}}})");
  invalid({"rope_scaling.factor is missing"}, scaling(R"({"type": "linear"})"));
  invalid({"rope_scaling.factor is 0"}, scaling(R"({"type": "linear", "factor": 0})"));
  invalid({"rope_scaling.factor is -2"}, scaling(R"({"type": "dynamic", "factor": -2})"));
  invalid({"rope_scaling.factor is \"2\""}, scaling(R"({"type": "dynamic", "factor": "2"})"));
  invalid({"rope_scaling is [2]: must be an object"}, scaling("[2]"));
  invalid({"rope_scaling.low_freq_factor is missing"},
          scaling(R"({"rope_type": "llama3", "factor": 8})"));
  invalid({"rope_scaling.high_freq_factor is 1", "above low_freq_factor, 1"},
          scaling(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
                      "high_freq_factor": 1})"));
  invalid({"rope_scaling.beta_fast is 1", "not be below beta_slow, 2"},
          scaling(R"({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2})"));
  invalid({"rope_scaling.original_max_position_embeddings is 0"},
          scaling(R"({"type": "yarn", "factor": 2, "original_max_position_embeddings": 0})"));
  invalid({"rope_scaling", "contradicts rope_parameters"},
          R"({"rope_scaling": {"type": "linear", "factor": 2},
              "rope_parameters": {"rope_type": "default"}})");
  invalid({"rope_theta is 0"}, R"({"rope_theta": 0})");
  invalid({"rope_theta is 1", "must be a number from"}, R"({"rope_theta": 1})");
  invalid({"partial_rotary_factor is 1.5"}, R"({"partial_rotary_factor": 1.5})");
  invalid({"partial_rotary_factor is 0.2", "leaves 3"}, R"({"partial_rotary_factor": 0.2})");
  invalid({"dynamic RoPE scaling needs more than 2"},
          R"({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}})");
  refused(ErrorCode::kUnsupported, {"rotary.type is \"other\""}, R"({"rotary": {"type": "other"}})",
          "InternLMForCausalLM");
  refused(ErrorCode::kInvalidModel, {"rotary", "contradicts rope_theta"},
          R"({"rotary": {"type": "origin"}, "rope_theta": 10000})", "InternLMForCausalLM");
}

TEST(Config, RefusesBadWindows) {
  const std::string name = "Qwen2ForCausalLM";
  refused(ErrorCode::kInvalidModel, {"layer_types", "has 1 entries, but num_hidden_layers is 4"},
          R"({"layer_types": ["full_attention"]})", name);
  refused(ErrorCode::kInvalidModel, {"names sliding_attention, but the model has no"},
          R"({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]})", name);
  refused(ErrorCode::kUnsupported, {"layer_types", "\"linear_attention\" is not one of"},
          R"({"num_hidden_layers": 1, "layer_types": ["linear_attention"]})", name);
  refused(ErrorCode::kInvalidModel, {"sliding_window is -5"},
          R"({"use_sliding_window": true, "sliding_window": -5})", name);
}

TEST(Config, ReadsDirectories) {
  const testing::TempDir dir;
  expect_error(ErrorCode::kNotFound, {"config.json: there is no file"},
               [&] { read_spec(dir.path()); });
  dir.write("config.json", config("LlamaForCausalLM"));
  EXPECT_EQ(read_spec(dir.path()).eos_token_ids, (std::vector<int32_t>{2}));
  dir.write("generation_config.json", R"({"eos_token_id": 3})");
  EXPECT_EQ(read_spec(dir.path()).eos_token_ids, (std::vector<int32_t>{2, 3}));
  dir.write("generation_config.json", "{");
  expect_error(ErrorCode::kInvalidModel, {"generation_config.json: not valid JSON"},
               [&] { read_spec(dir.path()); });
  expect_error(ErrorCode::kNotFound, {"does not exist"}, [&] { read_spec(dir.file("none")); });
  expect_error(ErrorCode::kNotFound, {"is not a directory"},
               [&] { read_spec(dir.file("config.json")); });
}

TEST(ModelOptions, SwitchOnDynamicNtkAndLogn) {
  ModelSpec spec =
      spec_of("LlamaForCausalLM", R"({"rope_scaling": {"type": "linear", "factor": 2}})");
  model::apply_options(spec, 0.0, -1);
  EXPECT_EQ(spec.rope.kind, RopeKind::kLinear);
  EXPECT_EQ(spec.logn_len, 0);
  model::apply_options(spec, 2.5, 1);
  EXPECT_EQ(spec.rope.kind, RopeKind::kDynamicNtk);
  EXPECT_EQ(spec.rope.factor, 2.5);
  EXPECT_EQ(spec.rope.original_len, 512);
  EXPECT_EQ(spec.logn_len, 512);
  model::apply_options(spec, 0.0, -1);
  EXPECT_EQ(spec.logn_len, 512);
  model::apply_options(spec, 0.0, 0);
  EXPECT_EQ(spec.logn_len, 0);
}

TEST(ModelOptions, RefuseValuesOutOfRange) {
  ModelSpec spec = spec_of("LlamaForCausalLM");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double factor : {-1.0, 0.5, 1e7, nan, std::numeric_limits<double>::infinity()}) {
    expect_error(ErrorCode::kInvalidArgument, {"rope_scaling_factor is ", "must be 0"},
                 [&] { model::apply_options(spec, factor, -1); });
  }
  for (const int logn : {-2, 2}) {
    expect_error(ErrorCode::kInvalidArgument, {"use_logn_attn is ", "must be -1"},
                 [&] { model::apply_options(spec, 0.0, logn); });
  }
}

}  // namespace
}  // namespace treadle::loader
