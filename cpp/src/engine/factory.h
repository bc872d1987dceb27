// Makes an engine on a given backend: where tests put one that fails on purpose.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"
#include "treadle/engine.h"

namespace treadle {

struct EngineFactory {
  /// Engine::load on `backend`, which the engine then owns, as it does when this throws Error.
  /// `device_note` is for ModelInfo.
  static std::unique_ptr<Engine> load(const std::string& path, const EngineConfig& config,
                                      ops::Ops backend, const std::string& device_note = {});
};

}  // namespace treadle
