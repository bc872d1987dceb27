// What a config.json means: a plain record, filled by one small reader per family (loader/).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/quant_spec.h"
#include "ops/types.h"

namespace treadle::model {

enum class RopeKind : uint8_t {
  kDefault,     // inv_freq_i = base^(-2i/d)
  kLinear,      // positions divided by factor
  kDynamicNtk,  // base grows with the length beyond original_len
  kLlama3,      // three wavelength bands (Llama 3.1)
  kYarn,        // arXiv:2309.00071
};

struct RopeSpec {
  RopeKind kind = RopeKind::kDefault;
  double base = 10000.0;
  int32_t rotary_dim = 0;  // head_dim unless partial_rotary_factor says less
  double factor = 1.0;
  int32_t original_len = 0;  // length the model was trained for before scaling
  // llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  // yarn
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 0.0;  // 0 = 0.1 ln(factor) + 1, or from mscale / mscale_all_dim
  double mscale = 0.0;
  double mscale_all_dim = 0.0;
  bool truncate = true;
};

struct ModelSpec {
  std::string architecture;  // "LlamaForCausalLM"
  std::string family;  // "llama", "mistral", "qwen2", "qwen3", "internlm", "internlm2", "internlm3"
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;
  float norm_eps = 1e-6F;
  RopeSpec rope;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  bool tied_embeddings = false;
  bool fused_wqkv = false;  // internlm2: wqkv rows are [kv_head][group q heads | k | v][head_dim]
  int32_t logn_len = 0;     // > 0: logn attention beyond this length
  int32_t sliding_window = 0;
  std::vector<uint8_t> layer_uses_window;  // [num_layers] 1 where sliding_window applies
  ops::DType weight_dtype = ops::DType::kF16;
  QuantSpec quant;  // of the linear layers that the checkpoint does not store whole
  int32_t bos_token_id = -1;
  std::vector<int32_t> eos_token_ids;  // config.json and generation_config.json together

  int32_t group() const { return num_heads / num_kv_heads; }
  int32_t qkv_features() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

}  // namespace treadle::model
