// Static ranges of K and V for int8 KV.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <vector>

#include "loader/loader.h"
#include "loader/mapped_file.h"
#include "loader/safetensors.h"
#include "loader/text.h"

namespace treadle::loader {
namespace {

constexpr const char* kFile = "kv_qparams.safetensors";
constexpr const char* kTensor = "kv_qparams";

void check_tensor(const std::vector<Tensor>& tensors, const model::ModelSpec& spec) {
  const std::vector<int64_t> shape = {spec.num_layers, 2, spec.num_kv_heads, 2};
  if (tensors.size() != 1 || tensors[0].name != kTensor) {
    std::vector<std::string> names;
    names.reserve(tensors.size());
    for (const Tensor& tensor : tensors) names.push_back(tensor.name);
    fail_model(kFile, cat("has ", names.empty() ? "no tensor" : list_text(names),
                          ": must hold one tensor, ", quote(kTensor)));
  }
  if (std::string_view(tensors[0].type->name) != "F32" || tensors[0].shape != shape) {
    fail_model(kFile,
               cat("tensor ", quote(kTensor), " is ", tensors[0].type->name, " of shape ",
                   shape_text(tensors[0].shape), ": this model needs F32 ", shape_text(shape)));
  }
}

void check_value(const ops::KvScale& value, size_t index, size_t heads) {
  if (std::isfinite(value.scale) && value.scale > 0.0F && std::isfinite(value.zero)) return;
  const bool bad_zero = !std::isfinite(value.zero);
  fail_model(kFile, cat(bad_zero ? "zero" : "scale", " of layer ", index / (2 * heads),
                        index / heads % 2 == 0 ? ", K" : ", V", ", head ", index % heads, " is ",
                        bad_zero ? value.zero : value.scale, ": must be finite",
                        bad_zero ? "" : " and above 0"));
}

}  // namespace

bool has_kv_ranges(const std::string& directory) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::path(directory) / kFile, error);
}

std::vector<ops::KvScale> load_kv_ranges(const std::string& directory,
                                         const model::ModelSpec& spec) {
  if (!has_kv_ranges(directory)) return {};
  const MappedFile file((std::filesystem::path(directory) / kFile).string(), kFile);
  const std::vector<Tensor> tensors = parse_safetensors(file.bytes(), kFile);
  check_tensor(tensors, spec);
  const auto heads = static_cast<size_t>(spec.num_kv_heads);
  std::vector<ops::KvScale> values(static_cast<size_t>(spec.num_layers) * 2 * heads);
  std::memcpy(values.data(), tensors[0].data.data(), values.size() * sizeof(ops::KvScale));
  for (size_t i = 0; i < values.size(); ++i) check_value(values[i], i, heads);
  return values;
}

}  // namespace treadle::loader
