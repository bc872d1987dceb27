// An engine that can be closed while other threads use it, and that survives fork().
#pragma once

#include <memory>
#include <mutex>

#include <treadle/engine.h>

namespace treadle::python {

class EngineHandle {
 public:
  explicit EngineHandle(std::unique_ptr<Engine> engine);
  ~EngineHandle();
  EngineHandle(const EngineHandle&) = delete;
  EngineHandle& operator=(const EngineHandle&) = delete;

  /// Throws Error (kShutdown) once closed, and in a child process: threads do not survive fork().
  std::shared_ptr<Engine> get() const;
  const ModelInfo& info() const { return info_; }
  Health health() const;

  /// Shuts down, then frees the memory once no other call is under way. Idempotent. Call it without
  /// the GIL: it waits for the engine's thread.
  void close(double drain_seconds);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Engine> engine_;
  const ModelInfo info_;
  const int process_id_;
};

}  // namespace treadle::python
