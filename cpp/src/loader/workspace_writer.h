// Makes workspaces.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "loader/weight_source.h"
#include "loader/workspace_config.h"
#include "model/model_spec.h"

namespace treadle::loader {

/// Writes the weights of rank 0 of 1 to the workspace `out`. Throws Error(kInvalidArgument) for
/// what cannot be written.
void write_workspace_weights(const WeightSource& source, const model::ModelSpec& spec,
                             const std::string& out,
                             const std::function<void(int64_t, int64_t)>& progress);

/// Writes config.ini and the weights of a model directory to `out`, an existing directory; the
/// model's other files are the caller's to copy. `progress(done, total)` in bytes read, may be
/// empty. Throws Error as load_weights does; kInvalidArgument when `directory` is a workspace
/// already, for `settings` out of range and for what cannot be written.
void write_workspace(const std::string& directory, const std::string& out,
                     const WorkspaceConfig& settings,
                     const std::function<void(int64_t, int64_t)>& progress);

}  // namespace treadle::loader
