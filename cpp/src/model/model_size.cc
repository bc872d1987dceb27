#include "model/model_size.h"

namespace treadle::model {

int64_t num_parameters(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden_size;
  const int64_t inter = spec.intermediate_size;
  const int64_t qkv = spec.qkv_features();
  const int64_t attention = int64_t{spec.num_heads} * spec.head_dim;
  int64_t layer = hidden * qkv + attention * hidden + 3 * hidden * inter + 2 * hidden;
  if (spec.qkv_bias) layer += qkv;
  if (spec.o_bias) layer += hidden;
  if (spec.mlp_bias) layer += 2 * inter + hidden;
  if (spec.qk_norm) layer += 2 * int64_t{spec.head_dim};
  const int64_t embeddings = int64_t{spec.vocab_size} * hidden * (spec.tied_embeddings ? 1 : 2);
  return embeddings + spec.num_layers * layer + hidden;
}

}  // namespace treadle::model
