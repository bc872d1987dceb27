// Reads a Hugging Face model directory or a workspace made from one: config.json into a ModelSpec,
// safetensors into Weights.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "loader/workspace_config.h"
#include "model/model_spec.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace treadle::loader {

/// Reads and checks config.json and generation_config.json. Throws Error: kNotFound for a missing
/// directory or file, kInvalidModel for damage, kUnsupported for an unknown architecture or a field
/// that would change results and is not implemented; the message names file, field and value.
model::ModelSpec read_spec(const std::string& directory);

/// The same, and for a workspace (a directory with a config.ini) what that asks of the engine.
struct ModelFiles {
  model::ModelSpec spec;
  std::optional<WorkspaceConfig> workspace;
};
ModelFiles read_model(const std::string& directory);

/// Type of the checkpoint's projections, which config.json may state wrongly or not at all. Throws
/// Error as load_weights does.
ops::DType stored_dtype(const std::string& directory, const model::ModelSpec& spec);

/// Maps the directory's safetensors, checks every tensor against the spec before any is used, and
/// hands them to the backend. `progress(done, total)` in bytes, may be empty. spec.weight_dtype is
/// only what config.json declares; each tensor's own dtype counts.
model::Weights load_weights(const std::string& directory, const model::ModelSpec& spec,
                            const ops::Ops& ops,
                            const std::function<void(int64_t, int64_t)>& progress);

/// Reads the ranges of K and V that calibration has measured (`treadle lite kv_qparams`), where the
/// directory has them, for int8 KV with constant parameters:
///
///   kv_qparams.safetensors: tensor "kv_qparams", F32 [layers][2 (K, V)][kv_heads][2 (scale, zero)]
///
/// K is meant as the cache holds it, after its norm and RoPE. Returns [layers][2][kv_heads], or
/// nothing without the file. Throws Error(kInvalidModel) for a file that does not fit the model, a
/// scale that is not above 0 and values that are not finite.
std::vector<ops::KvScale> load_kv_ranges(const std::string& directory,
                                         const model::ModelSpec& spec);
bool has_kv_ranges(const std::string& directory);

}  // namespace treadle::loader
