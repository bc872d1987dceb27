#include "model/weights.h"

#include <utility>

namespace treadle::model {

Weights::Weights(Weights&& other) noexcept
    : layers(std::exchange(other.layers, {})),
      embedding(std::exchange(other.embedding, nullptr)),
      embedding_dtype(other.embedding_dtype),
      final_norm(std::exchange(other.final_norm, nullptr)),
      head(std::exchange(other.head, {})),
      num_parameters(other.num_parameters),
      bytes(other.bytes),
      ops_(other.ops_) {}

Weights::~Weights() {
  const auto release = [this](void* memory) {
    if (memory != nullptr) ops_->release(ops_->self, memory);
  };
  // A load that failed half way leaves some of these empty.
  const auto release_linear = [this](ops::LinearWeight& weight) {
    if (weight.data != nullptr) ops_->release_linear(ops_->self, &weight);
  };
  for (LayerWeights& layer : layers) {
    for (ops::LinearWeight* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      release_linear(*weight);
    }
    for (float* norm : {layer.attn_norm, layer.mlp_norm, layer.q_norm, layer.k_norm}) release(norm);
  }
  release(embedding);
  release(final_norm);
  release_linear(head);
}

}  // namespace treadle::model
