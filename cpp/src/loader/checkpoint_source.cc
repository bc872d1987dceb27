#include "loader/checkpoint_source.h"

#include <algorithm>

#include "loader/convert.h"
#include "loader/text.h"
#include "loader/verify.h"

namespace treadle::loader {
namespace {

void note(const LinearName& linear, std::vector<std::string>& used) {
  for (const ExpectedTensor& tensor : linear_tensors(linear)) {
    if (std::find(used.begin(), used.end(), tensor.name) != used.end()) return;
    used.push_back(tensor.name);
  }
}

[[noreturn]] void refuse_mix(const LinearName& a, const LinearName& b, const char* how) {
  throw Error(ErrorCode::kUnsupported, cat("layers ", quote(a.name), " and ", quote(b.name), " ",
                                           how, ": they are computed as one and must agree"));
}

}  // namespace

CheckpointSource::CheckpointSource(const std::string& directory, const model::ModelSpec& spec)
    : WeightSource(Checkpoint(directory)), spec_(spec), names_(tensor_names(spec)) {
  mark_quantized(checkpoint(), spec, names_);
  set_bytes(verify_checkpoint(checkpoint(), spec, names_));
}

std::vector<CheckpointSource::Segment> CheckpointSource::segments(LinearPart part,
                                                                  size_t layer) const {
  const auto whole = [](std::initializer_list<const LinearName*> parts) {
    std::vector<Segment> out;
    for (const LinearName* linear : parts) out.push_back({linear, 0, linear->out});
    return out;
  };
  if (part == LinearPart::kHead) {
    return whole({spec_.tied_embeddings ? &names_.embedding : &names_.head});
  }
  const LayerNames& names = names_.layers[layer];
  switch (part) {
    case LinearPart::kQkv:
      return qkv_segments(names.qkv);
    case LinearPart::kO:
      return whole({&names.o});
    case LinearPart::kGateUp:
      return whole({&names.gate, &names.up});
    default:
      return whole({&names.down});
  }
}

// Q, then K, then V. InternLM2 stores them per kv head, as [kv_head][group q heads | k | v], which
// leaves query head h = kv_head * group + g in the usual order once the parts are picked out.
std::vector<CheckpointSource::Segment> CheckpointSource::qkv_segments(
    const std::vector<LinearName>& qkv) const {
  std::vector<Segment> out;
  if (!spec_.fused_wqkv) {
    for (const LinearName& linear : qkv) out.push_back({&linear, 0, linear.out});
    return out;
  }
  const int64_t dim = spec_.head_dim;
  const int64_t group = spec_.group();
  const int64_t stride = (group + 2) * dim;
  const auto pick = [&](int64_t offset, int64_t rows) {
    for (int64_t h = 0; h < spec_.num_kv_heads; ++h) {
      out.push_back({qkv.data(), h * stride + offset, rows});
    }
  };
  pick(0, group * dim);
  pick(group * dim, dim);
  pick((group + 1) * dim, dim);
  return out;
}

FusedLinear CheckpointSource::linear(LinearPart part, size_t layer) const {
  const std::vector<Segment> parts = segments(part, layer);
  const bool quantized = std::any_of(parts.begin(), parts.end(),
                                     [](const Segment& s) { return s.linear->quantized(); });
  return quantized ? int4(parts) : dense(parts);
}

// Segments of different types become float32 first, which is exact: a fused weight has one type.
FusedLinear CheckpointSource::dense(const std::vector<Segment>& segments) const {
  FusedLinear out;
  out.in = segments[0].linear->in;
  const ops::DType first = *tensor(segments[0].linear->weight_name()).type->weight;
  const bool mixed = std::any_of(segments.begin(), segments.end(), [&](const Segment& s) {
    return *tensor(s.linear->weight_name()).type->weight != first;
  });
  for (const Segment& segment : segments) {
    out.pieces.push_back(piece_of(segment, mixed, out.copies));
    out.rows += segment.rows;
    append_bias(segment, out);
    note(*segment.linear, out.used);
  }
  return out;
}

// All layers of the segments are int4 with the same groups.
FusedLinear CheckpointSource::int4(const std::vector<Segment>& segments) const {
  const LinearName& first = *segments[0].linear;
  for (const Segment& segment : segments) {
    if (segment.linear->quantized() != first.quantized()) {
      refuse_mix(first, *segment.linear, "are not both quantised");
    }
  }
  FusedLinear out;
  out.in = first.in;
  out.groups.reserve(segments.size());  // pieces point into it
  for (const Segment& segment : segments) {
    const LinearName& linear = *segment.linear;
    const auto [at, added] = out.int4.try_emplace(linear.name);
    Int4Weight& from = at->second;
    if (added) from = read_int4(checkpoint(), linear);
    const Int4Weight& leader = out.int4.at(first.name);
    if (from.group_of != leader.group_of) refuse_mix(first, linear, "have different g_idx");
    const int64_t count = linear.in / from.group_size;
    out.groups.push_back({.scales = from.scales.data() + segment.row * count,
                          .zeros = from.zeros.data() + segment.row * count,
                          .group_of = leader.group_of.empty() ? nullptr : leader.group_of.data(),
                          .group_size = from.group_size});
    out.pieces.push_back({.data = from.q.data() + segment.row * linear.in / 2,
                          .dtype = ops::DType::kU8,
                          .rows = segment.rows,
                          .int4 = &out.groups.back()});
    out.rows += segment.rows;
    append_bias(segment, out);
    note(linear, out.used);
  }
  return out;
}

// The segment's rows, where they are mapped or, converted to float32 or merely aligned, in a new
// one of `copies`.
ops::WeightPiece CheckpointSource::piece_of(const Segment& segment, bool convert,
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
  return {aligned(data, static_cast<size_t>(count) * size, size, copies), dtype, segment.rows};
}

void CheckpointSource::append_bias(const Segment& segment, FusedLinear& out) const {
  if (!segment.linear->bias) return;
  const Tensor& values = tensor(segment.linear->bias_name());
  const ops::DType dtype = *values.type->weight;
  const size_t begin = out.bias.size();
  out.bias.resize(begin + static_cast<size_t>(segment.rows));
  const auto offset = static_cast<int64_t>(ops::dtype_size(dtype)) * segment.row;
  to_float(values.data.data() + offset, dtype, segment.rows, out.bias.data() + begin);
}

std::string CheckpointSource::norm(NormPart part, size_t layer) const {
  if (part == NormPart::kFinal) return names_.final_norm.name;
  const LayerNames& names = names_.layers[layer];
  switch (part) {
    case NormPart::kAttn:
      return names.attn_norm.name;
    case NormPart::kMlp:
      return names.mlp_norm.name;
    case NormPart::kQ:
      return names.q_norm.name;
    default:
      return names.k_norm.name;
  }
}

std::vector<std::string> CheckpointSource::layer_tensors(size_t layer) const {
  return loader::layer_tensors(names_.layers[layer]);
}

}  // namespace treadle::loader
