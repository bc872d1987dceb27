// A model's weights in the backend's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model_spec.h"
#include "ops/ops.h"

namespace treadle::model {

struct LayerWeights {
  ops::LinearWeight qkv;  // Q, K, V stacked; bias inside
  ops::LinearWeight o;
  ops::LinearWeight gate_up;  // made with silu_mul
  ops::LinearWeight down;
  float* attn_norm = nullptr;  // [hidden]
  float* mlp_norm = nullptr;   // [hidden]
  float* q_norm = nullptr;     // [head_dim] or null
  float* k_norm = nullptr;
};

/// Owns everything it points to, through the Ops it was made with (which must outlive it).
class Weights {
 public:
  explicit Weights(const ops::Ops& ops) : ops_(&ops) {}
  ~Weights();
  Weights(Weights&&) noexcept;
  Weights& operator=(Weights&&) = delete;
  Weights(const Weights&) = delete;

  std::vector<LayerWeights> layers;
  void* embedding = nullptr;  // [vocab][hidden] of embedding_dtype; null when tied to the head
  ops::DType embedding_dtype = ops::DType::kF32;
  float* final_norm = nullptr;  // [hidden]
  ops::LinearWeight head;       // N = vocab

  int64_t num_parameters = 0;
  int64_t bytes = 0;

 private:
  const ops::Ops* ops_;
};

}  // namespace treadle::model
