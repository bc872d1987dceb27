#include "loader/quant_config.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "loader/text.h"

namespace treadle::loader {
namespace {

using model::QuantMethod;
using model::QuantSpec;

constexpr const char* kKey = "quantization_config";

void require_bits(const Fields& fields, const std::string& key) {
  if (!fields.has(key)) fields.fail(key, "must be given");
  if (fields.integer(key, {}, 0, 1024) != 4) fields.unsupported(key, "only 4 is implemented");
}

/// -1 is one group of all inputs. Kernels and formats know powers of two.
int32_t read_group_size(const Fields& fields, const std::string& key) {
  const int32_t size = fields.integer(key, {}, -1, 1 << 20);
  if (size == -1) return 0;
  if (size != 32 && size != 64 && size != 128) {
    fields.unsupported(key, "only 32, 64, 128 and -1 are implemented");
  }
  return size;
}

QuantSpec read_awq(const Fields& fields) {
  require_bits(fields, fields.has("w_bit") ? "w_bit" : "bits");
  std::string version = fields.string("version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (version != "gemm") fields.unsupported("version", "only \"gemm\" is implemented");
  if (!fields.boolean("zero_point", true)) {
    fields.unsupported("zero_point", "only true is implemented");
  }
  const bool older = fields.has("q_group_size");
  return {.method = QuantMethod::kAwq,
          .group_size = read_group_size(fields, older ? "q_group_size" : "group_size")};
}

QuantSpec read_gptq(const Fields& fields) {
  require_bits(fields, "bits");
  const std::string format = fields.string("checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2") {
    fields.unsupported("checkpoint_format", "only \"gptq\" and \"gptq_v2\" are implemented");
  }
  return {.method = QuantMethod::kGptq,
          .group_size = read_group_size(fields, "group_size"),
          .group_index = fields.boolean("desc_act", false),
          .zero_less_one = format == "gptq"};
}

void require_absent(const Fields& fields, const char* key) {
  if (fields.has(key)) fields.unsupported(key, "this is not implemented");
}

QuantSpec read_packed(const Fields& fields) {
  if (fields.string("format", "") != "pack-quantized") {
    fields.unsupported("format", "only \"pack-quantized\" is implemented");
  }
  require_absent(fields, "kv_cache_scheme");
  const auto groups = fields.object("config_groups");
  if (!groups || groups->json().size() != 1) {
    fields.unsupported("config_groups", "exactly one group is implemented");
  }
  const std::string prefix = cat(kKey, ".config_groups.");
  const Fields group(groups->json().begin().value(), fields.file(), prefix);
  require_absent(group, "input_activations");
  require_absent(group, "output_activations");
  const Json* json = group.find("weights");
  if (json == nullptr) group.fail("weights", "must be an object");
  const Fields weights(*json, fields.file(), prefix + "weights.");
  require_bits(weights, "num_bits");
  if (weights.string("type", "int") != "int") {
    weights.unsupported("type", "only \"int\" is implemented");
  }
  const std::string order = weights.string("actorder", "");
  if (!order.empty() && order != "static" && order != "weight") {
    weights.unsupported("actorder", "only \"static\" is implemented");
  }
  QuantSpec spec{.method = QuantMethod::kPacked, .symmetric = weights.boolean("symmetric", true)};
  const std::string strategy = weights.string("strategy", "group");
  if (strategy == "group") {
    spec.group_size = read_group_size(weights, "group_size");
  } else if (strategy != "channel") {
    weights.unsupported("strategy", "only \"group\" and \"channel\" are implemented");
  }
  return spec;
}

}  // namespace

QuantSpec read_quantization(const Fields& config) {
  const Json* json = config.find(kKey);
  if (json == nullptr || (json->is_object() && json->empty())) return {};
  if (!json->is_object()) {
    config.unsupported(kKey, "weights quantised with an unnamed method are not supported");
  }
  const Fields fields(*json, config.file(), cat(kKey, "."));
  const std::string method = fields.string("quant_method", "");
  if (method == "awq") return read_awq(fields);
  if (method == "gptq") return read_gptq(fields);
  if (method == "compressed-tensors") return read_packed(fields);
  fields.unsupported("quant_method",
                     "only \"awq\", \"gptq\" and \"compressed-tensors\" are supported");
}

}  // namespace treadle::loader
