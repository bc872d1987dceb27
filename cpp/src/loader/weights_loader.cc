#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/convert.h"
#include "loader/int4.h"
#include "loader/loader.h"
#include "loader/tensor_names.h"
#include "loader/text.h"
#include "loader/verify.h"

namespace treadle::loader {
namespace {

using model::LayerWeights;
using model::ModelSpec;
using model::Weights;
using Progress = std::function<void(int64_t, int64_t)>;

// A table is uploaded in parts of this size, so that its pages can be given back on the way.
constexpr size_t kUploadBytes = size_t{16} << 20;

// Rows [row, row + rows) of a linear layer of the checkpoint.
struct Segment {
  const LinearName* linear = nullptr;
  int64_t row = 0;
  int64_t rows = 0;
};

std::vector<Segment> whole(std::initializer_list<const LinearName*> parts) {
  std::vector<Segment> out;
  for (const LinearName* part : parts) out.push_back({part, 0, part->out});
  return out;
}

// Q, then K, then V. InternLM2 stores them per kv head, as [kv_head][group q heads | k | v], which
// leaves query head h = kv_head * group + g in the usual order once the parts are picked out.
std::vector<Segment> qkv_segments(const ModelSpec& spec, const std::vector<LinearName>& qkv) {
  if (!spec.fused_wqkv) return whole({&qkv[0], &qkv[1], &qkv[2]});
  const int64_t dim = spec.head_dim;
  const int64_t group = spec.group();
  const int64_t stride = (group + 2) * dim;
  std::vector<Segment> out;
  const auto pick = [&](int64_t offset, int64_t rows) {
    for (int64_t h = 0; h < spec.num_kv_heads; ++h) {
      out.push_back({qkv.data(), h * stride + offset, rows});
    }
  };
  pick(0, group * dim);
  pick(group * dim, dim);
  pick((group + 1) * dim, dim);
  return out;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ops::Ops& ops, int64_t total, const Progress& progress)
      : checkpoint_(checkpoint), ops_(ops), total_(total), progress_(progress) {
    report();
  }

  void load(const ModelSpec& spec, const ModelNames& names, Weights& weights) {
    // The biggest tensors first, while little else is held: a weight and the pages it is read from
    // are in memory together for a moment.
    load_embedding(spec, names, weights);
    weights.layers.resize(names.layers.size());
    for (size_t i = 0; i < names.layers.size(); ++i) {
      if (i + 1 < names.layers.size()) prefetch(names.layers[i + 1]);
      load_layer(spec, names.layers[i], weights.layers[i], weights);
    }
    norm(names.final_norm, weights.final_norm, weights);
  }

 private:
  const Tensor& tensor(const std::string& name) const { return checkpoint_.find(name)->tensor; }

  void load_embedding(const ModelSpec& spec, const ModelNames& names, Weights& weights) {
    const LinearName& head = spec.tied_embeddings ? names.embedding : names.head;
    linear(whole({&head}), false, weights.head, weights);
    if (spec.tied_embeddings) return;
    const Checkpoint::Entry& entry = *checkpoint_.find(names.embedding.weight_name());
    const std::span<const std::byte> table = entry.tensor.data;
    weights.embedding_dtype = *entry.tensor.type->weight;
    weights.embedding = ops_.alloc(ops_.self, table.size());
    for (size_t begin = 0; begin < table.size(); begin += kUploadBytes) {
      const auto part = table.subspan(begin, std::min(kUploadBytes, table.size() - begin));
      ops_.upload(ops_.self, static_cast<std::byte*>(weights.embedding) + begin, part.data(),
                  part.size(), {});
      ops_.synchronize(ops_.self, {});
      checkpoint_.drop(entry, part);
    }
    weights.bytes += static_cast<int64_t>(table.size());
    finish({entry.tensor.name}, weights);
  }

  void load_layer(const ModelSpec& spec, const LayerNames& names, LayerWeights& layer,
                  Weights& weights) {
    norm(names.attn_norm, layer.attn_norm, weights);
    linear(qkv_segments(spec, names.qkv), false, layer.qkv, weights);
    if (spec.qk_norm) {
      norm(names.q_norm, layer.q_norm, weights);
      norm(names.k_norm, layer.k_norm, weights);
    }
    linear(whole({&names.o}), false, layer.o, weights);
    norm(names.mlp_norm, layer.mlp_norm, weights);
    linear(whole({&names.gate, &names.up}), true, layer.gate_up, weights);
    linear(whole({&names.down}), false, layer.down, weights);
  }

  void norm(const NormName& name, float*& out, Weights& weights) {
    const Tensor& weight = tensor(name.name);
    std::vector<float> values(static_cast<size_t>(name.size));
    to_float(weight.data.data(), *weight.type->weight, name.size, values.data());
    const size_t bytes = values.size() * sizeof(float);
    out = static_cast<float*>(ops_.alloc(ops_.self, bytes));
    ops_.upload(ops_.self, out, values.data(), bytes, {});
    weights.bytes += static_cast<int64_t>(bytes);
    finish({name.name}, weights);
  }

  // Stacks the segments into `out`. Segments of different types become float32 first, which is
  // exact: a fused weight has one type.
  void linear(const std::vector<Segment>& segments, bool silu_mul, ops::LinearWeight& out,
              Weights& weights) {
    if (std::any_of(segments.begin(), segments.end(),
                    [](const Segment& s) { return s.linear->quantized(); })) {
      return int4_linear(segments, silu_mul, out, weights);
    }
    const int64_t in = segments[0].linear->in;
    const ops::DType first = *tensor(segments[0].linear->weight_name()).type->weight;
    const bool mixed = std::any_of(segments.begin(), segments.end(), [&](const Segment& s) {
      return *tensor(s.linear->weight_name()).type->weight != first;
    });
    std::vector<ops::WeightPiece> pieces;
    std::vector<std::vector<float>> copies;
    std::vector<float> bias;
    std::vector<std::string> used;
    int64_t rows = 0;
    for (const Segment& segment : segments) {
      pieces.push_back(piece_of(segment, mixed, copies));
      rows += segment.rows;
      if (segment.linear->bias) append_bias(segment, bias);
      note(segment, used);
    }
    out = ops_.make_linear(ops_.self, pieces.data(), static_cast<int32_t>(pieces.size()), in,
                           bias.empty() ? nullptr : bias.data(), silu_mul);
    weights.bytes += rows * in * static_cast<int64_t>(ops::dtype_size(out.dtype)) +
                     static_cast<int64_t>(bias.size() * sizeof(float));
    finish(used, weights);
  }

  // The same where all layers of the segments are int4 with the same groups.
  void int4_linear(const std::vector<Segment>& segments, bool silu_mul, ops::LinearWeight& out,
                   Weights& weights) {
    const LinearName& first = *segments[0].linear;
    for (const Segment& segment : segments) {
      if (segment.linear->quantized() != first.quantized()) {
        refuse_mix(first, *segment.linear, "are not both quantised");
      }
    }
    std::map<const LinearName*, Int4Weight> read;
    std::vector<ops::Int4Groups> groups;
    std::vector<ops::WeightPiece> pieces;
    std::vector<float> bias;
    std::vector<std::string> used;
    groups.reserve(segments.size());
    int64_t rows = 0;
    for (const Segment& segment : segments) {
      const LinearName& linear = *segment.linear;
      const auto [at, added] = read.try_emplace(&linear);
      Int4Weight& from = at->second;
      if (added) from = read_int4(checkpoint_, linear);
      const Int4Weight& leader = read.at(&first);
      if (from.group_of != leader.group_of) refuse_mix(first, linear, "have different g_idx");
      const int64_t count = linear.in / from.group_size;
      groups.push_back({.scales = from.scales.data() + segment.row * count,
                        .zeros = from.zeros.data() + segment.row * count,
                        .group_of = leader.group_of.empty() ? nullptr : leader.group_of.data(),
                        .group_size = from.group_size});
      pieces.push_back({.data = from.q.data() + segment.row * linear.in / 2,
                        .dtype = ops::DType::kU8,
                        .rows = segment.rows,
                        .int4 = &groups.back()});
      rows += segment.rows;
      if (linear.bias) append_bias(segment, bias);
      note(segment, used);
    }
    out = ops_.make_linear(ops_.self, pieces.data(), static_cast<int32_t>(pieces.size()), first.in,
                           bias.empty() ? nullptr : bias.data(), silu_mul);
    const int64_t scale_bytes = first.in / groups[0].group_size * (2 * sizeof(float));
    weights.bytes +=
        rows * (first.in / 2 + scale_bytes) + static_cast<int64_t>(bias.size() * sizeof(float));
    // Other elements of its tensors are no parameters of the model.
    const int64_t before = weights.num_parameters;
    finish(used, weights);
    weights.num_parameters = before + rows * first.in + static_cast<int64_t>(bias.size());
  }

  [[noreturn]] static void refuse_mix(const LinearName& a, const LinearName& b, const char* how) {
    throw Error(ErrorCode::kUnsupported, cat("layers ", quote(a.name), " and ", quote(b.name), " ",
                                             how, ": they are computed as one and must agree"));
  }

  // The segment's rows, where they are mapped or, converted to float32 or merely aligned, in a new
  // one of `copies`.
  ops::WeightPiece piece_of(const Segment& segment, bool convert,
                            std::vector<std::vector<float>>& copies) const {
    const Tensor& weight = tensor(segment.linear->weight_name());
    const ops::DType dtype = *weight.type->weight;
    const int64_t row_elements = segment.linear->in;
    const int64_t count = segment.rows * row_elements;
    const size_t size = ops::dtype_size(dtype);
    const std::byte* data =
        weight.data.data() + static_cast<size_t>(segment.row * row_elements) * size;
    if (convert && dtype != ops::DType::kF32) {
      std::vector<float>& copy = copies.emplace_back(static_cast<size_t>(count));
      to_float(data, dtype, count, copy.data());
      return {copy.data(), ops::DType::kF32, segment.rows};
    }
    // The format allows tensors at any byte, backends read whole elements.
    if (reinterpret_cast<uintptr_t>(data) % size != 0) {
      const size_t bytes = static_cast<size_t>(count) * size;
      std::vector<float>& copy = copies.emplace_back((bytes + sizeof(float) - 1) / sizeof(float));
      std::memcpy(copy.data(), data, bytes);
      return {copy.data(), dtype, segment.rows};
    }
    return {data, dtype, segment.rows};
  }

  void append_bias(const Segment& segment, std::vector<float>& bias) const {
    const Tensor& values = tensor(segment.linear->bias_name());
    const ops::DType dtype = *values.type->weight;
    const size_t begin = bias.size();
    bias.resize(begin + static_cast<size_t>(segment.rows));
    const auto offset = static_cast<int64_t>(ops::dtype_size(dtype)) * segment.row;
    to_float(values.data.data() + offset, dtype, segment.rows, bias.data() + begin);
  }

  static void note(const Segment& segment, std::vector<std::string>& used) {
    for (const ExpectedTensor& tensor : linear_tensors(*segment.linear)) {
      if (std::find(used.begin(), used.end(), tensor.name) != used.end()) return;
      used.push_back(tensor.name);
    }
  }

  // The tensors are in the backend's memory now: count them, and let go of their pages, so that the
  // weights are never held twice.
  void finish(const std::vector<std::string>& used, Weights& weights) {
    ops_.synchronize(ops_.self, {});
    for (const std::string& name : used) {
      const Checkpoint::Entry& entry = *checkpoint_.find(name);
      weights.num_parameters += entry.tensor.elements();
      done_ += static_cast<int64_t>(entry.tensor.data.size());
      checkpoint_.drop(entry, entry.tensor.data);
    }
    report();
  }

  void prefetch(const LayerNames& layer) const {
    for (const std::string& name : layer_tensors(layer)) {
      checkpoint_.prefetch(*checkpoint_.find(name));
    }
  }

  void report() const {
    if (progress_) progress_(done_, total_);
  }

  const Checkpoint& checkpoint_;
  const ops::Ops& ops_;
  const int64_t total_;
  const Progress& progress_;
  int64_t done_ = 0;
};

}  // namespace

ops::DType stored_dtype(const std::string& directory, const ModelSpec& spec) {
  const Checkpoint checkpoint(directory);
  const std::string name = tensor_names(spec).layers.front().qkv.front().weight_name();
  const Checkpoint::Entry* entry = checkpoint.find(name);
  const bool known = entry != nullptr && entry->tensor.type->weight;
  return known ? *entry->tensor.type->weight : spec.weight_dtype;
}

Weights load_weights(const std::string& directory, const ModelSpec& spec, const ops::Ops& ops,
                     const Progress& progress) {
  const Checkpoint checkpoint(directory);
  ModelNames names = tensor_names(spec);
  mark_quantized(checkpoint, spec, names);
  const int64_t total = verify_checkpoint(checkpoint, spec, names);
  Weights weights(ops);
  Loader(checkpoint, ops, total, progress).load(spec, names, weights);
  return weights;
}

}  // namespace treadle::loader
