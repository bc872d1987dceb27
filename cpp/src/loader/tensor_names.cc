#include "loader/tensor_names.h"

#include <functional>

#include "loader/int4.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;

struct Sizes {
  explicit Sizes(const ModelSpec& spec)
      : hidden(spec.hidden_size),
        inter(spec.intermediate_size),
        q(int64_t{spec.num_heads} * spec.head_dim),
        kv(int64_t{spec.num_kv_heads} * spec.head_dim) {}
  int64_t hidden, inter, q, kv;
};

LayerNames common_layer(const ModelSpec& spec, const std::string& prefix) {
  const Sizes size(spec);
  const std::string attn = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  LayerNames layer;
  layer.qkv = {{attn + "q_proj", size.q, size.hidden, spec.qkv_bias},
               {attn + "k_proj", size.kv, size.hidden, spec.qkv_bias},
               {attn + "v_proj", size.kv, size.hidden, spec.qkv_bias}};
  layer.o = {attn + "o_proj", size.hidden, size.q, spec.o_bias};
  layer.gate = {mlp + "gate_proj", size.inter, size.hidden, spec.mlp_bias};
  layer.up = {mlp + "up_proj", size.inter, size.hidden, spec.mlp_bias};
  layer.down = {mlp + "down_proj", size.hidden, size.inter, spec.mlp_bias};
  layer.attn_norm = {prefix + "input_layernorm.weight", size.hidden};
  layer.mlp_norm = {prefix + "post_attention_layernorm.weight", size.hidden};
  if (spec.qk_norm) {
    layer.q_norm = {attn + "q_norm.weight", spec.head_dim};
    layer.k_norm = {attn + "k_norm.weight", spec.head_dim};
  }
  return layer;
}

LayerNames internlm2_layer(const ModelSpec& spec, const std::string& prefix) {
  const Sizes size(spec);
  LayerNames layer;
  layer.qkv = {{prefix + "attention.wqkv", size.q + 2 * size.kv, size.hidden, spec.qkv_bias}};
  layer.o = {prefix + "attention.wo", size.hidden, size.q, spec.o_bias};
  layer.gate = {prefix + "feed_forward.w1", size.inter, size.hidden, spec.mlp_bias};
  layer.up = {prefix + "feed_forward.w3", size.inter, size.hidden, spec.mlp_bias};
  layer.down = {prefix + "feed_forward.w2", size.hidden, size.inter, spec.mlp_bias};
  layer.attn_norm = {prefix + "attention_norm.weight", size.hidden};
  layer.mlp_norm = {prefix + "ffn_norm.weight", size.hidden};
  return layer;
}

// Calls `linear` and `norm` for everything a layer holds.
void visit(const LayerNames& layer, const std::function<void(const LinearName&)>& linear,
           const std::function<void(const NormName&)>& norm) {
  norm(layer.attn_norm);
  for (const LinearName& part : layer.qkv) linear(part);
  if (!layer.q_norm.name.empty()) norm(layer.q_norm);
  if (!layer.k_norm.name.empty()) norm(layer.k_norm);
  linear(layer.o);
  norm(layer.mlp_norm);
  for (const LinearName* part : {&layer.gate, &layer.up, &layer.down}) linear(*part);
}

}  // namespace

ModelNames tensor_names(const ModelSpec& spec) {
  const bool internlm2 = spec.fused_wqkv;
  const int64_t hidden = spec.hidden_size;
  ModelNames names;
  names.embedding = {internlm2 ? "model.tok_embeddings" : "model.embed_tokens", spec.vocab_size,
                     hidden, false};
  names.head = {internlm2 ? "output" : "lm_head", spec.vocab_size, hidden, false};
  names.final_norm = {"model.norm.weight", hidden};
  for (int32_t i = 0; i < spec.num_layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    names.layers.push_back(internlm2 ? internlm2_layer(spec, prefix) : common_layer(spec, prefix));
  }
  return names;
}

std::vector<ExpectedTensor> linear_tensors(const LinearName& part) {
  std::vector<ExpectedTensor> out;
  if (part.quantized()) {
    out = int4_tensors(part);
  } else {
    out.push_back({part.weight_name(), {part.out, part.in}});
  }
  if (part.bias) out.push_back({part.bias_name(), {part.out}});
  return out;
}

std::vector<ExpectedTensor> expected_tensors(const ModelSpec& spec, const ModelNames& names) {
  std::vector<ExpectedTensor> out;
  const auto linear = [&](const LinearName& part) {
    for (ExpectedTensor& tensor : linear_tensors(part)) out.push_back(std::move(tensor));
  };
  const auto norm = [&](const NormName& part) { out.push_back({part.name, {part.size}}); };
  linear(names.embedding);
  for (const LayerNames& layer : names.layers) visit(layer, linear, norm);
  norm(names.final_norm);
  if (!spec.tied_embeddings) linear(names.head);
  return out;
}

std::vector<std::string> layer_tensors(const LayerNames& layer) {
  std::vector<std::string> out;
  const auto linear = [&](const LinearName& part) {
    for (const ExpectedTensor& tensor : linear_tensors(part)) out.push_back(tensor.name);
  };
  visit(layer, linear, [&](const NormName& part) { out.push_back(part.name); });
  return out;
}

bool is_tolerated(const std::string& name, const ModelSpec& spec, const ModelNames& names) {
  if (name.ends_with(".rotary_emb.inv_freq")) return true;
  return spec.tied_embeddings && name == names.head.weight_name();
}

}  // namespace treadle::loader
