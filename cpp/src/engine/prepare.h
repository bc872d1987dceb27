// From a model directory and options to what will be loaded.
#pragma once

#include <string>

#include "model/model_spec.h"
#include "treadle/config.h"

namespace treadle {

struct Prepared {
  model::ModelSpec spec;     // options that change what is computed are applied
  EngineConfig config;       // what it leaves open is as a workspace's config.ini says
  std::string model_name;    // of a workspace's config.ini, or empty
  std::string ignored_keys;  // of a workspace's config.ini, separated by ", "
};

/// Reads the model's files but for its weights. Throws Error as loader::read_model and
/// model::apply_options do.
Prepared prepare(const std::string& path, const EngineConfig& config);

}  // namespace treadle
