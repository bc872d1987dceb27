#include "loader/config.h"

#include <filesystem>
#include <string>
#include <vector>

#include "loader/config_common.h"
#include "loader/families.h"
#include "loader/json.h"
#include "loader/loader.h"
#include "loader/quant_config.h"
#include "loader/text.h"
#include "loader/text_file.h"
#include "loader/workspace_config.h"
#include "loader/workspace_layout.h"

namespace treadle::loader {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr size_t kMaxConfigBytes = size_t{8} << 20;

model::ModelSpec make_spec(const Json& config_json, const Json* generation_json) {
  const Fields config(config_json, kConfig);
  const Family& family = find_family(config);
  refuse_unsupported(config);
  model::ModelSpec spec;
  const std::vector<std::string> named = config.strings("architectures");
  spec.architecture = named.empty() ? family.architecture : named[0];
  spec.family = family.name;
  family.read(config, spec);
  spec.quant = read_quantization(config);
  read_eos(config, spec);
  if (generation_json != nullptr) read_eos(Fields(*generation_json, kGeneration), spec);
  return spec;
}

}  // namespace

model::ModelSpec parse_spec(std::string_view config, std::optional<std::string_view> generation) {
  const Json config_json = parse_json(config, kConfig);
  if (!generation) return make_spec(config_json, nullptr);
  const Json generation_json = parse_json(*generation, kGeneration);
  return make_spec(config_json, &generation_json);
}

ModelFiles read_model(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    const char* problem = fs::exists(directory, error) ? " is not a directory" : " does not exist";
    throw Error(ErrorCode::kNotFound, cat("model directory ", quote(directory, 1000), problem));
  }
  const fs::path base(directory);
  if (!fs::exists(base / kConfig, error) && fs::exists(base / "triton_models", error)) {
    throw Error(
        ErrorCode::kUnsupported,
        cat(quote(directory, 1000),
            " is a workspace of LMDeploy, whose weights are not read: run `treadle convert` "
            "on the Hugging Face model it was made from"));
  }
  const Json config = read_json_file((base / kConfig).string(), kConfig, kMaxConfigBytes);
  std::optional<Json> generation;
  if (fs::exists(base / kGeneration, error)) {
    generation = read_json_file((base / kGeneration).string(), kGeneration, kMaxConfigBytes);
  }
  ModelFiles model{make_spec(config, generation ? &*generation : nullptr), {}};
  if (is_workspace(directory)) {
    const std::string text =
        read_text_file((base / kWorkspaceConfig).string(), kWorkspaceConfig, kMaxConfigBytes);
    model.workspace = parse_workspace_config(text, stored_dtype(directory, model.spec), model.spec);
  }
  return model;
}

model::ModelSpec read_spec(const std::string& directory) { return read_model(directory).spec; }

}  // namespace treadle::loader
