// From the text of a model's configuration files to a ModelSpec.
#pragma once

#include <optional>
#include <string_view>

#include "model/model_spec.h"

namespace treadle::loader {

/// `config` is the text of config.json, `generation` that of generation_config.json where there is
/// one. Throws Error as read_spec does (loader.h).
model::ModelSpec parse_spec(std::string_view config, std::optional<std::string_view> generation);

}  // namespace treadle::loader
