#include "engine_handle.h"

#include <unistd.h>

#include <utility>

#include <pybind11/pybind11.h>

namespace treadle::python {

EngineHandle::EngineHandle(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), info_(engine_->info()), process_id_(getpid()) {}

EngineHandle::~EngineHandle() {
  if (!engine_) return;
  if (getpid() != process_id_) {
    // The engine's thread is in the parent: joining it here would wait for ever.
    new std::shared_ptr<Engine>(std::move(engine_));
    return;
  }
  pybind11::gil_scoped_release unlocked;
  engine_.reset();
}

std::shared_ptr<Engine> EngineHandle::get() const {
  if (getpid() != process_id_) {
    throw Error(ErrorCode::kShutdown,
                "this engine was loaded in the parent process and its threads do not survive "
                "fork(); load it in the process that uses it");
  }
  std::lock_guard lock(mutex_);
  if (!engine_) throw Error(ErrorCode::kShutdown, "the engine is closed");
  return engine_;
}

Health EngineHandle::health() const {
  std::shared_ptr<Engine> engine;
  {
    std::lock_guard lock(mutex_);
    engine = engine_;
  }
  if (!engine) return {.ok = false, .cause = "the engine is closed"};
  return engine->health();
}

void EngineHandle::close(double drain_seconds) {
  if (getpid() != process_id_) return;
  std::shared_ptr<Engine> engine;
  {
    std::lock_guard lock(mutex_);
    engine = engine_;
  }
  if (!engine) return;
  engine->shutdown(drain_seconds);
  std::lock_guard lock(mutex_);
  engine_.reset();
}

}  // namespace treadle::python
