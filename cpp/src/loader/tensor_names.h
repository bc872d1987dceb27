// Which tensors a model's checkpoint must hold: names and shapes, per naming scheme.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_spec.h"

namespace treadle::loader {

/// A linear layer of the checkpoint: `name`.weight is [out][in], or where quant.method says so it
/// is int4_tensors(); `name`.bias [out] where there is one.
struct LinearName {
  std::string name;
  int64_t out = 0;
  int64_t in = 0;
  bool bias = false;
  model::QuantSpec quant = {};

  bool quantized() const { return quant.method != model::QuantMethod::kNone; }
  std::string weight_name() const { return name + ".weight"; }
  std::string bias_name() const { return name + ".bias"; }
};

/// A norm's weight.
struct NormName {
  std::string name;  // with ".weight"; empty when the model has no such norm
  int64_t size = 0;
};

struct LayerNames {
  std::vector<LinearName> qkv;  // q, k, v; or the one fused wqkv of InternLM2
  LinearName o;
  LinearName gate;
  LinearName up;
  LinearName down;
  NormName attn_norm;
  NormName mlp_norm;
  NormName q_norm;
  NormName k_norm;
};

struct ModelNames {
  LinearName embedding;  // [vocab][hidden]
  LinearName head;       // also named when tied, then not expected in the checkpoint
  NormName final_norm;
  std::vector<LayerNames> layers;
};

struct ExpectedTensor {
  // F32, F16, BF16; I32; I32 or I64; U8
  enum class Kind : uint8_t { kFloat, kInt32, kInteger, kByte };
  std::string name;
  std::vector<int64_t> shape;
  Kind kind = Kind::kFloat;
};

ModelNames tensor_names(const model::ModelSpec& spec);

/// Every tensor the checkpoint must hold.
std::vector<ExpectedTensor> expected_tensors(const model::ModelSpec& spec, const ModelNames& names);

/// Tensors of one linear layer: its weight's, then its bias.
std::vector<ExpectedTensor> linear_tensors(const LinearName& part);

/// Tensors of one layer, in the order they are used.
std::vector<std::string> layer_tensors(const LayerNames& layer);

/// True for tensors that some writers add and that carry nothing: rotary frequencies, and the head
/// of a model whose head is its embedding.
bool is_tolerated(const std::string& name, const model::ModelSpec& spec, const ModelNames& names);

}  // namespace treadle::loader
