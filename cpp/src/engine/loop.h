// The persistent batch loop: one thread that owns all mutable state of an engine.
//
//   drain -> retire -> schedule -> run -> sample -> emit, again and again; asleep when idle.
//
// On a backend that works by itself, one step is queued ahead while sequences only decode: its
// tokens go from the one before it to the next on the device, and the host's work runs meanwhile. A
// sequence that turns out to have ended had a token computed in vain.
//
// Nothing thrown in a step leaves it: an error there is the device's or a bug, so every live
// request fails with the cause, health() tells it, and no more requests are taken.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/roster.h"
#include "engine/step.h"
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
  void start(Step& step);
  bool start_behind(const Step& running, Step& next);
  void advance(const Step& step);
  void emit(Step& step);
  void publish(Clock::duration step_time, Clock::duration model_time);
  void fail(ErrorCode code, const char* what);

  const LoopParts parts_;
  kv::KvCache kv_;
  Scheduler scheduler_;
  Stats counters_;  // the loop's own; readers get the published copy
  Roster roster_;
  StepRunner runner_;

  // Two, so that one can be queued behind the other.
  std::array<Step, 2> steps_;
  Step* running_ = nullptr;  // launched in an earlier turn and not finished yet
  Clock::time_point step_begin_{};
  bool poked_ = false;  // something was cancelled

  mutable std::mutex published_mutex_;
  Stats published_;
  Health health_;
  Clock::time_point drain_deadline_ = Clock::time_point::max();
};

}  // namespace treadle
