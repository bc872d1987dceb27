// Makes an engine on a given backend: the one place where a device is chosen, and where tests put a
// backend that fails on purpose.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"
#include "treadle/engine.h"

namespace treadle {

/// The backend that config.device and config.num_threads ask for. Throws Error.
ops::Ops select_backend(const EngineConfig& config);

struct EngineFactory {
  /// Engine::load on `backend`, which the engine then owns. Throws Error.
  static std::unique_ptr<Engine> load(const std::string& path, const EngineConfig& config,
                                      ops::Ops backend);
};

}  // namespace treadle
