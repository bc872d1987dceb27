#include "loader/workspace_source.h"

#include <algorithm>
#include <cmath>

#include "loader/convert.h"
#include "loader/text.h"
#include "loader/verify.h"
#include "loader/workspace_layout.h"

namespace treadle::loader {
namespace {

using Kind = ExpectedTensor::Kind;

constexpr uint8_t kMaxZero = 16;  // as in ops::Int4Groups

}  // namespace

WorkspaceSource::WorkspaceSource(const std::string& directory, const model::ModelSpec& spec)
    : WeightSource(Checkpoint(rank_directory(directory, 0))), spec_(spec) {
  set_bytes(verify_tensors(checkpoint(), spec, expected(), is_padding));
}

// A layer that is not stored whole has 4-bit weights, where the model has any.
bool WorkspaceSource::quantized(const LinearName& linear) const {
  return spec_.quant.method != model::QuantMethod::kNone &&
         checkpoint().find(linear.weight_name()) == nullptr;
}

int64_t WorkspaceSource::group_size(const LinearName& linear) const {
  const int64_t size = spec_.quant.group_size > 0 ? spec_.quant.group_size : linear.in;
  if (linear.in % size != 0 || linear.in % 2 != 0) {
    throw Error(ErrorCode::kInvalidModel, cat("layer ", quote(linear.name), " has ", linear.in,
                                              " inputs: not a multiple of the group size, ", size));
  }
  return size;
}

std::vector<ExpectedTensor> WorkspaceSource::linear_tensors(const LinearName& linear) const {
  std::vector<ExpectedTensor> out;
  if (quantized(linear)) {
    const int64_t groups = linear.in / group_size(linear);
    out.push_back({linear.name + ".q", {linear.out, linear.in / 2}, Kind::kByte});
    out.push_back({linear.name + ".scales", {linear.out, groups}});
    out.push_back({linear.name + ".zeros", {linear.out, groups}, Kind::kByte});
    const std::string group_of = linear.name + ".group_of";
    if (checkpoint().find(group_of) != nullptr) {
      out.push_back({group_of, {linear.in}, Kind::kInt32});
    }
  } else {
    out.push_back({linear.weight_name(), {linear.out, linear.in}});
  }
  if (linear.bias) out.push_back({linear.bias_name(), {linear.out}});
  return out;
}

std::vector<ExpectedTensor> WorkspaceSource::expected() const {
  std::vector<ExpectedTensor> out;
  const auto add_linear = [&](LinearPart part, size_t layer) {
    for (auto& tensor : linear_tensors(workspace_linear(spec_, part, layer))) {
      out.push_back(std::move(tensor));
    }
  };
  add_linear(LinearPart::kHead, 0);
  if (!spec_.tied_embeddings) {
    out.push_back({kWorkspaceEmbedding, {spec_.vocab_size, spec_.hidden_size}});
  }
  for (size_t layer = 0; layer < static_cast<size_t>(spec_.num_layers); ++layer) {
    for (const NormPart part : layer_norms(spec_)) {
      const bool head = part == NormPart::kQ || part == NormPart::kK;
      out.push_back({workspace_norm(part, layer), {head ? spec_.head_dim : spec_.hidden_size}});
    }
    for (const LinearPart part : layer_linears()) add_linear(part, layer);
  }
  out.push_back({workspace_norm(NormPart::kFinal, 0), {spec_.hidden_size}});
  return out;
}

FusedLinear WorkspaceSource::linear(LinearPart part, size_t layer) const {
  const LinearName linear = workspace_linear(spec_, part, layer);
  FusedLinear out;
  out.in = linear.in;
  out.rows = linear.out;
  for (const ExpectedTensor& each : linear_tensors(linear)) out.used.push_back(each.name);
  if (quantized(linear)) {
    read_int4(linear, out);
  } else {
    const Tensor& weight = tensor(linear.weight_name());
    const ops::DType dtype = *weight.type->weight;
    const std::byte* data =
        aligned(weight.data.data(), weight.data.size(), ops::dtype_size(dtype), out.copies);
    out.pieces.push_back({data, dtype, linear.out});
  }
  if (linear.bias) {
    const Tensor& bias = tensor(linear.bias_name());
    out.bias.resize(static_cast<size_t>(linear.out));
    to_float(bias.data.data(), *bias.type->weight, linear.out, out.bias.data());
  }
  return out;
}

void WorkspaceSource::read_int4(const LinearName& linear, FusedLinear& out) const {
  const int64_t size = group_size(linear);
  const int64_t groups = linear.in / size;
  const Tensor& scales = tensor(linear.name + ".scales");
  const auto count = static_cast<size_t>(linear.out * groups);
  const std::byte* scale_data = scales.data.data();
  if (*scales.type->weight == ops::DType::kF32) {
    scale_data = aligned(scale_data, scales.data.size(), sizeof(float), out.copies);
  } else {
    std::vector<float>& copy = out.copies.emplace_back(count);
    to_float(scale_data, *scales.type->weight, linear.out * groups, copy.data());
    scale_data = reinterpret_cast<const std::byte*>(copy.data());
  }
  const auto* scale = reinterpret_cast<const float*>(scale_data);
  if (!std::all_of(scale, scale + count, [](float s) { return std::isfinite(s); })) {
    fail(scales.name, "has a scale that is not finite");
  }
  const Tensor& zeros = tensor(linear.name + ".zeros");
  const auto* zero = reinterpret_cast<const uint8_t*>(zeros.data.data());
  if (const uint8_t largest = *std::max_element(zero, zero + count); largest > kMaxZero) {
    fail(zeros.name,
         cat("has a zero point of ", int{largest}, ": must be from 0 to ", int{kMaxZero}));
  }
  const int32_t* group_of = nullptr;
  const std::string index = linear.name + ".group_of";
  if (checkpoint().find(index) != nullptr) {
    const Tensor& from = tensor(index);
    group_of = reinterpret_cast<const int32_t*>(
        aligned(from.data.data(), from.data.size(), sizeof(int32_t), out.copies));
    for (int64_t k = 0; k < linear.in; ++k) {
      if (group_of[k] < 0 || group_of[k] >= groups) {
        fail(index, cat("has group ", group_of[k], ": must be from 0 to ", groups - 1));
      }
    }
  }
  out.groups.push_back({.scales = scale, .zeros = zero, .group_of = group_of, .group_size = size});
  out.pieces.push_back({.data = tensor(linear.name + ".q").data.data(),
                        .dtype = ops::DType::kU8,
                        .rows = linear.out,
                        .int4 = &out.groups.back()});
}

void WorkspaceSource::fail(const std::string& name, const std::string& problem) const {
  const Checkpoint::Entry& entry = *checkpoint().find(name);
  fail_model(checkpoint().file_name(entry), cat("tensor ", quote(name), " ", problem));
}

std::string WorkspaceSource::norm(NormPart part, size_t layer) const {
  return workspace_norm(part, layer);
}

std::string WorkspaceSource::embedding() const { return kWorkspaceEmbedding; }

std::vector<std::string> WorkspaceSource::layer_tensors(size_t layer) const {
  std::vector<std::string> out;
  for (const NormPart part : layer_norms(spec_)) out.push_back(workspace_norm(part, layer));
  for (const LinearPart part : layer_linears()) {
    for (const auto& each : linear_tensors(workspace_linear(spec_, part, layer))) {
      out.push_back(each.name);
    }
  }
  return out;
}

}  // namespace treadle::loader
