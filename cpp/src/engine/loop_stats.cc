// What other threads see of the loop: its counters and its health.

#include <chrono>
#include <string>

#include "engine/loop.h"

namespace treadle {

void Loop::publish(Clock::duration step_time, Clock::duration model_time) {
  Stats& stats = counters_;
  stats.running = static_cast<int32_t>(scheduler_.running().size());
  stats.waiting = static_cast<int32_t>(scheduler_.waiting().size()) + roster_.num_behind();
  stats.sessions = parts_.sessions.size();
  stats.blocks_free = kv_.pool().num_free();
  stats.blocks_active = kv_.pool().num_active();
  stats.blocks_cached = kv_.pool().num_cached();
  stats.preemptions = scheduler_.num_preemptions();
  stats.computed_tokens = scheduler_.num_computed_tokens();
  stats.prefix_hit_tokens = scheduler_.num_cached_tokens();
  stats.evicted_blocks = kv_.pool().num_evicted();
  stats.copied_blocks = kv_.num_copied();
  if (step_time > Clock::duration::zero()) {
    ++stats.steps;
    stats.step_seconds += std::chrono::duration<double>(step_time).count();
    stats.host_seconds += std::chrono::duration<double>(step_time - model_time).count();
  }
  std::lock_guard lock(published_mutex_);
  published_ = stats;
}

Stats Loop::stats() const {
  std::lock_guard lock(published_mutex_);
  return published_;
}

Health Loop::health() const {
  std::lock_guard lock(published_mutex_);
  return health_;
}

void Loop::fail(ErrorCode code, const char* what) {
  const std::string cause = std::string(error_code_name(code)) + ": " + what;
  parts_.inbox.close(ErrorCode::kDevice,
                     "the engine has failed and must be loaded again: " + cause);
  std::lock_guard lock(published_mutex_);
  health_ = {.ok = false, .cause = cause};
}

void Loop::set_drain_deadline(Clock::time_point deadline) {
  std::lock_guard lock(published_mutex_);
  drain_deadline_ = deadline;
}

}  // namespace treadle
