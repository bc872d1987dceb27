// Which tensors a model's checkpoint must hold: names and shapes, per naming scheme.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_spec.h"

namespace treadle::loader {

/// A linear layer of the checkpoint: `name`.weight is [out][in], `name`.bias [out] where there is
/// one.
struct LinearName {
  std::string name;
  int64_t out = 0;
  int64_t in = 0;
  bool bias = false;

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
  std::string name;
  std::vector<int64_t> shape;
};

ModelNames tensor_names(const model::ModelSpec& spec);

/// Every tensor the checkpoint must hold.
std::vector<ExpectedTensor> expected_tensors(const model::ModelSpec& spec, const ModelNames& names);

/// Tensors of one layer, in the order they are used.
std::vector<std::string> layer_tensors(const LayerNames& layer);

/// True for tensors that some writers add and that carry nothing: rotary frequencies, and the head
/// of a model whose head is its embedding.
bool is_tolerated(const std::string& name, const model::ModelSpec& spec, const ModelNames& names);

}  // namespace treadle::loader
