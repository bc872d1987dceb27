// The persistent batch loop: one thread that owns all mutable state of an engine.
//
//   drain -> retire -> schedule -> run -> sample -> emit, again and again; asleep when idle.
//
// Nothing thrown in a step leaves it: an error there is the device's or a bug, so every live
// request fails with the cause, health() tells it, and no more requests are taken.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "batch/step_input.h"
#include "engine/roster.h"
#include "engine/step_sampler.h"
#include "kv/kv_cache.h"
#include "model/decoder.h"
#include "request/inbox.h"
#include "request/session_table.h"
#include "scheduler/scheduler.h"
#include "treadle/engine.h"

namespace treadle {

struct LoopParts {
  const model::ModelSpec& spec;
  const ops::Ops& ops;
  ops::KvPool pool;
  model::Decoder& decoder;
  SessionTable& sessions;
  Inbox& inbox;
  SchedulerLimits limits;
  RosterOptions roster;
};

class Loop {
 public:
  explicit Loop(const LoopParts& parts);

  /// Runs until the inbox is closed and the live requests have ended, or the drain time is over.
  void run();

  // Any thread.
  Stats stats() const;
  Health health() const;
  /// When, after the inbox was closed, what still runs is ended.
  void set_drain_deadline(Clock::time_point deadline);

 private:
  bool drain();
  void retire();
  void settle();
  void end_all();
  void step();
  void run_model();
  void emit();
  void publish(Clock::duration step_time, Clock::duration model_time);
  void fail(ErrorCode code, const char* what);

  const LoopParts parts_;
  kv::KvCache kv_;
  Scheduler scheduler_;
  Stats counters_;  // the loop's own; readers get the published copy
  Roster roster_;
  StepSampler sampler_;

  // One step's, kept for their memory.
  Decision decision_;
  StepInput input_;
  std::vector<StepRow> rows_;
  std::vector<StepResult> results_;
  Clock::time_point step_begin_{};
  bool poked_ = false;  // something was cancelled

  mutable std::mutex published_mutex_;
  Stats published_;
  Health health_;
  Clock::time_point drain_deadline_ = Clock::time_point::max();
};

}  // namespace treadle
