#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "loader/checkpoint_source.h"
#include "loader/convert.h"
#include "loader/loader.h"
#include "loader/weight_source.h"
#include "loader/workspace_layout.h"
#include "loader/workspace_source.h"

namespace treadle::loader {
namespace {

using model::LayerWeights;
using model::ModelSpec;
using model::Weights;
using Progress = std::function<void(int64_t, int64_t)>;

// A table is uploaded in parts of this size, so that its pages can be given back on the way.
constexpr size_t kUploadBytes = size_t{16} << 20;

class Loader {
 public:
  Loader(const WeightSource& source, const ops::Ops& ops, const Progress& progress)
      : source_(source), ops_(ops), progress_(progress) {
    report();
  }

  void load(const ModelSpec& spec, Weights& weights) {
    // The biggest tensors first, while little else is held: a weight and the pages it is read from
    // are in memory together for a moment.
    linear(LinearPart::kHead, 0, weights.head, weights);
    if (!spec.tied_embeddings) load_embedding(weights);
    weights.layers.resize(static_cast<size_t>(spec.num_layers));
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      if (i + 1 < weights.layers.size()) prefetch(i + 1);
      load_layer(spec, i, weights.layers[i], weights);
    }
    norm(NormPart::kFinal, 0, weights.final_norm, weights);
  }

 private:
  void load_embedding(Weights& weights) {
    const Checkpoint::Entry& entry = *source_.checkpoint().find(source_.embedding());
    const std::span<const std::byte> table = entry.tensor.data;
    weights.embedding_dtype = *entry.tensor.type->weight;
    weights.embedding = ops_.alloc(ops_.self, table.size());
    for (size_t begin = 0; begin < table.size(); begin += kUploadBytes) {
      const auto part = table.subspan(begin, std::min(kUploadBytes, table.size() - begin));
      ops_.upload(ops_.self, static_cast<std::byte*>(weights.embedding) + begin, part.data(),
                  part.size(), {});
      ops_.synchronize(ops_.self, {});
      source_.checkpoint().drop(entry, part);
    }
    weights.bytes += static_cast<int64_t>(table.size());
    weights.num_parameters += entry.tensor.elements();
    finish({entry.tensor.name});
  }

  void load_layer(const ModelSpec& spec, size_t i, LayerWeights& layer, Weights& weights) {
    norm(NormPart::kAttn, i, layer.attn_norm, weights);
    linear(LinearPart::kQkv, i, layer.qkv, weights);
    if (spec.qk_norm) {
      norm(NormPart::kQ, i, layer.q_norm, weights);
      norm(NormPart::kK, i, layer.k_norm, weights);
    }
    linear(LinearPart::kO, i, layer.o, weights);
    norm(NormPart::kMlp, i, layer.mlp_norm, weights);
    linear(LinearPart::kGateUp, i, layer.gate_up, weights);
    linear(LinearPart::kDown, i, layer.down, weights);
  }

  void norm(NormPart part, size_t layer, float*& out, Weights& weights) {
    const Tensor& weight = source_.checkpoint().find(source_.norm(part, layer))->tensor;
    std::vector<float> values(static_cast<size_t>(weight.elements()));
    to_float(weight.data.data(), *weight.type->weight, weight.elements(), values.data());
    const size_t bytes = values.size() * sizeof(float);
    out = static_cast<float*>(ops_.alloc(ops_.self, bytes));
    ops_.upload(ops_.self, out, values.data(), bytes, {});
    weights.bytes += static_cast<int64_t>(bytes);
    weights.num_parameters += weight.elements();
    finish({weight.name});
  }

  void linear(LinearPart part, size_t layer, ops::LinearWeight& out, Weights& weights) {
    const FusedLinear from = source_.linear(part, layer);
    out = ops_.make_linear(ops_.self, from.pieces.data(), static_cast<int32_t>(from.pieces.size()),
                           from.in, from.bias.empty() ? nullptr : from.bias.data(),
                           part == LinearPart::kGateUp);
    weights.bytes += out.bytes;
    weights.num_parameters += from.parameters();
    finish(from.used);
  }

  // The tensors are in the backend's memory now: let go of their pages, so that the weights are
  // never held twice.
  void finish(const std::vector<std::string>& used) {
    ops_.synchronize(ops_.self, {});
    for (const std::string& name : used) {
      const Checkpoint::Entry& entry = *source_.checkpoint().find(name);
      done_ += static_cast<int64_t>(entry.tensor.data.size());
      source_.checkpoint().drop(entry, entry.tensor.data);
    }
    report();
  }

  void prefetch(size_t layer) const {
    for (const std::string& name : source_.layer_tensors(layer)) {
      source_.checkpoint().prefetch(*source_.checkpoint().find(name));
    }
  }

  void report() const {
    if (progress_) progress_(done_, source_.bytes());
  }

  const WeightSource& source_;
  const ops::Ops& ops_;
  const Progress& progress_;
  int64_t done_ = 0;
};

}  // namespace

const std::byte* WeightSource::aligned(const std::byte* data, size_t bytes, size_t size,
                                       std::vector<std::vector<float>>& copies) {
  // The format allows tensors at any byte, backends read whole elements.
  if (reinterpret_cast<uintptr_t>(data) % size == 0) return data;
  std::vector<float>& copy = copies.emplace_back((bytes + sizeof(float) - 1) / sizeof(float));
  std::memcpy(copy.data(), data, bytes);
  return reinterpret_cast<const std::byte*>(copy.data());
}

std::unique_ptr<WeightSource> open_weights(const std::string& directory, const ModelSpec& spec) {
  if (is_workspace(directory)) return std::make_unique<WorkspaceSource>(directory, spec);
  return std::make_unique<CheckpointSource>(directory, spec);
}

ops::DType stored_dtype(const std::string& directory, const ModelSpec& spec) {
  const bool workspace = is_workspace(directory);
  const Checkpoint checkpoint(workspace ? rank_directory(directory, 0) : directory);
  const std::string name = workspace ? workspace_linear(spec, LinearPart::kQkv, 0).weight_name()
                                     : tensor_names(spec).layers.front().qkv.front().weight_name();
  const Checkpoint::Entry* entry = checkpoint.find(name);
  const bool known = entry != nullptr && entry->tensor.type->weight;
  return known ? *entry->tensor.type->weight : spec.weight_dtype;
}

Weights load_weights(const std::string& directory, const ModelSpec& spec, const ops::Ops& ops,
                     const Progress& progress) {
  const std::unique_ptr<WeightSource> source = open_weights(directory, spec);
  Weights weights(ops);
  Loader(*source, ops, progress).load(spec, weights);
  return weights;
}

}  // namespace treadle::loader
